#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "machine.h"
#include "util.h"

enum { BILLION = 1000000000 };

void machine_set_clock(uint64_t nanoseconds) {
    struct timespec now = {.tv_sec = (time_t)(nanoseconds / BILLION), .tv_nsec = (long)(nanoseconds % BILLION)};
    if (clock_settime(CLOCK_REALTIME, &now) < 0)
        say("cannot set the clock: %s", strerror(errno));
}

void machine_add_entropy(const uint8_t *bytes, size_t size) {
    struct rand_pool_info *pool = must_alloc(sizeof *pool + size);
    int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
    pool->entropy_count = (int)size * 8;
    pool->buf_size = (int)size;
    memcpy(pool->buf, bytes, size);
    if (fd < 0 || ioctl(fd, RNDADDENTROPY, pool) < 0 || ioctl(fd, RNDRESEEDCRNG) < 0)
        say("cannot seed the random number generator: %s", strerror(errno));
    explicit_bzero(pool, sizeof *pool + size);
    free(pool);
    if (fd >= 0)
        close(fd);
}

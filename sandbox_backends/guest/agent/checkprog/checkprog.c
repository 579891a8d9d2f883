/* What the sandbox conformance kit runs inside (iii_core/testing/sandbox_harness.py, Commands): one static program in an
 * otherwise empty image, so that a check needs neither a shell nor an image from somewhere.
 *
 *   checkprog write PATH TEXT    puts TEXT into a file
 *   checkprog read PATH          prints a file
 *   checkprog id                 prints the user id
 *   checkprog allocate MIB       touches that much memory at once
 *   checkprog fork N             has N children at once
 *   checkprog fill PATH MIB      writes a file of that size, down to the disk
 *   checkprog connect IP PORT    connects by TCP, within CONNECT_SECONDS
 *
 * Exit code 0: done; 1: it could not be done, and why; 2: what is asked is not understood. */

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)
#define CONNECT_SECONDS 5
#define MOST 65536 /* MiB, or children: more is a typing error */

static int failed(const char *what)
{
    fprintf(stderr, "checkprog: %s: %s\n", what, strerror(errno));
    return 1;
}

static int write_all(int fd, const char *data, size_t size)
{
    while (size > 0) {
        ssize_t written = write(fd, data, size);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            return -1;
        data += written;
        size -= (size_t)written;
    }
    return 0;
}

static int open_new(const char *path)
{
    return open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
}

static int do_write(const char *path, const char *text)
{
    int fd = open_new(path);
    if (fd < 0 || write_all(fd, text, strlen(text)) < 0 || close(fd) < 0)
        return failed(path);
    return 0;
}

static int do_read(const char *path)
{
    char buffer[65536];
    ssize_t got;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return failed(path);
    while ((got = read(fd, buffer, sizeof buffer)) != 0) {
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 || write_all(STDOUT_FILENO, buffer, (size_t)got) < 0)
            return failed(path);
    }
    return 0;
}

static int do_fill(const char *path, long mib)
{
    static char block[MIB];
    int fd = open_new(path);
    if (fd < 0)
        return failed(path);
    memset(block, 'x', sizeof block); /* zeros could be a hole, or be compressed away */
    for (long i = 0; i < mib; i++)
        if (write_all(fd, block, sizeof block) < 0)
            return failed(path);
    if (fsync(fd) < 0 || close(fd) < 0) /* a full disk may be noticed no sooner */
        return failed(path);
    return 0;
}

static int do_allocate(long mib)
{
    size_t size = (size_t)mib * MIB, page = (size_t)sysconf(_SC_PAGESIZE);
    volatile char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return failed("memory");
    for (size_t at = 0; at < size; at += page)
        memory[at] = 1;
    return 0;
}

static int do_fork(long count)
{
    pid_t *children = calloc((size_t)count, sizeof *children);
    long made = 0;
    int result = 0;
    if (children == NULL)
        return failed("memory");
    while (made < count && result == 0) {
        pid_t child = fork();
        if (child == 0)
            for (;;)
                pause();
        if (child < 0)
            result = failed("fork");
        else
            children[made++] = child;
    }
    for (long i = 0; i < made; i++)
        kill(children[i], SIGKILL);
    while (wait(NULL) > 0 || errno == EINTR)
        ;
    free(children);
    return result;
}

static int do_connect(const char *address, long port)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct timeval patience = {.tv_sec = CONNECT_SECONDS};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) < 0)
        return failed("socket");
    if (inet_pton(AF_INET, address, &to.sin_addr) != 1) {
        errno = EINVAL;
        return failed(address);
    }
    return connect(fd, (struct sockaddr *)&to, sizeof to) < 0 ? failed(address) : 0;
}

/* A whole number from 1 to MOST; 0 if it is none. */
static long number(const char *text)
{
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    return errno == 0 && *text != '\0' && *end == '\0' && value >= 1 && value <= MOST ? value : 0;
}

int main(int argc, char **argv)
{
    const char *verb = argc > 1 ? argv[1] : "";
    if (argc == 4 && strcmp(verb, "write") == 0)
        return do_write(argv[2], argv[3]);
    if (argc == 3 && strcmp(verb, "read") == 0)
        return do_read(argv[2]);
    if (argc == 2 && strcmp(verb, "id") == 0)
        return printf("%u\n", (unsigned)getuid()) < 0;
    if (argc == 3 && strcmp(verb, "allocate") == 0 && number(argv[2]) > 0)
        return do_allocate(number(argv[2]));
    if (argc == 3 && strcmp(verb, "fork") == 0 && number(argv[2]) > 0)
        return do_fork(number(argv[2]));
    if (argc == 4 && strcmp(verb, "fill") == 0 && number(argv[3]) > 0)
        return do_fill(argv[2], number(argv[3]));
    if (argc == 4 && strcmp(verb, "connect") == 0 && number(argv[3]) > 0)
        return do_connect(argv[2], number(argv[3]));
    if (argc == 3 && strcmp(verb, "sleep") == 0 && number(argv[2]) > 0)
        return (int)sleep((unsigned)number(argv[2]));
    if (argc == 2 && strcmp(verb, "clock") == 0)
        return printf("%lld\n", (long long)time(NULL)) < 0;
    fprintf(stderr,
            "usage: checkprog write PATH TEXT | read PATH | id | allocate MIB | fork N | fill PATH MIB | connect IP PORT | "
            "sleep SECONDS | clock\n");
    return 2;
}

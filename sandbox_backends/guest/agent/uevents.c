#include <linux/netlink.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "loop.h"
#include "machine.h"

enum { DEVICES_MS = 5000, LOOK_AGAIN_MS = 100 };

static int listen_to_kernel(void) {
    struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = 1};
    int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT);
    if (fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        close(fd);
        fd = -1;
    }
    return fd;
}

/* The kernel announces devices and changes to them. It is looked now and then too: announcements may be lost. */
bool machine_wait_for(bool (*found)(void *), void *argument) {
    char ignored[4096];
    struct pollfd kernel = {.fd = listen_to_kernel(), .events = POLLIN};
    int64_t until = loop_now() + DEVICES_MS;
    bool there;
    while (!(there = found(argument)) && loop_now() < until) {
        poll(&kernel, 1, LOOK_AGAIN_MS);
        while (kernel.fd >= 0 && recv(kernel.fd, ignored, sizeof ignored, 0) > 0)
            ;
    }
    if (kernel.fd >= 0)
        close(kernel.fd);
    return there;
}

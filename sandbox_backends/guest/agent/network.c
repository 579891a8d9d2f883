/* The network device of a machine that has one: an address, a way out. What may pass is the host's to say. */
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <net/route.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "machine.h"

static const char DEVICE[] = "eth0"; /* the kernel's name of the first; there is nobody to rename it */

static bool device_found(void *unused) {
    (void)unused;
    return if_nametoindex(DEVICE) != 0;
}

static struct sockaddr internet(in_addr_t address) {
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = address};
    struct sockaddr any;
    memcpy(&any, &in, sizeof any);
    return any;
}

static void set(int fd, unsigned long request, struct ifreq *device, const char *what) {
    if (ioctl(fd, request, device) < 0)
        machine_fail("the network device: %s: %s", what, strerror(errno));
}

void machine_set_up_network(const struct cmdline *c) {
    struct ifreq device = {0};
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
    int fd;
    if (c->address[0] == 0)
        return;
    if (!machine_wait_for(device_found, NULL))
        machine_fail("there is no network device");
    fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        machine_fail("the network device: %s", strerror(errno));
    strcpy(device.ifr_name, DEVICE);
    device.ifr_addr = internet(inet_addr(c->address));
    set(fd, SIOCSIFADDR, &device, "its address");
    device.ifr_netmask = internet(htonl((uint32_t)(UINT64_MAX << (32 - c->prefix))));
    set(fd, SIOCSIFNETMASK, &device, "its network");
    set(fd, SIOCGIFFLAGS, &device, "its state");
    device.ifr_flags |= IFF_UP;
    set(fd, SIOCSIFFLAGS, &device, "bringing it up");
    route.rt_dst = route.rt_genmask = internet(0);
    route.rt_gateway = internet(inet_addr(c->gateway));
    if (ioctl(fd, SIOCADDRT, &route) < 0)
        machine_fail("the way to %s: %s", c->gateway, strerror(errno));
    close(fd);
}

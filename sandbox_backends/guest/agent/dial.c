/* Connections of the host's to a port inside (docs/protocol/agent.md, "DIAL"). */
#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"
#include "tlv.h"
#include "wire.h"

int dial_connect(uint16_t port, int family, bool *connecting) {
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    struct sockaddr_in v4 = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const struct sockaddr *address = family == AF_INET6 ? (struct sockaddr *)&v6 : (struct sockaddr *)&v4;
    int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    *connecting = false;
    if (connect(fd, address, family == AF_INET6 ? sizeof v6 : sizeof v4) == 0)
        return fd;
    *connecting = errno == EINPROGRESS;
    if (*connecting)
        return fd;
    int error = errno;
    close(fd);
    errno = error;
    return -1;
}

bool dial_open(struct agent *a, struct stream *s, const uint8_t *bytes, size_t size) {
    struct fields f = {.next = bytes, .end = bytes + size};
    enum field field;
    uint64_t port = 0;
    bool connecting;
    while ((field = fields_next(&f)) == FIELD_THERE)
        if (f.tag == TAG_PORT && !field_number(&f, 1, UINT16_MAX, &port))
            return false;
    if (field == FIELD_MALFORMED || port == 0)
        return false;
    uint16_t other_port = (uint16_t)port;
    int fd = dial_connect((uint16_t)port, AF_INET, &connecting);
    if (fd < 0 && errno == ECONNREFUSED) {
        other_port = 0;
        fd = dial_connect((uint16_t)port, AF_INET6, &connecting);
        if (fd < 0)
            errno = ECONNREFUSED; /* and not that there is no IPv6 */
    }
    if (fd < 0)
        stream_close(s, strerror(errno));
    else
        tunnel_adopt(a, s, fd, connecting, other_port);
    return true;
}

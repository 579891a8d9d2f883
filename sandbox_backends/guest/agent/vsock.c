#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "machine.h"
#include "util.h"

int machine_listen_vsock(uint32_t port) {
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port};
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 4) < 0)
        machine_fail("listening on vsock port %u: %s", port, strerror(errno));
    return fd;
}

int machine_accept_vsock(int listener) {
    struct sockaddr_vm peer = {0};
    socklen_t size = sizeof peer;
    int fd = accept4(listener, (struct sockaddr *)&peer, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0 && (peer.svm_family != AF_VSOCK || peer.svm_cid != VMADDR_CID_HOST)) {
        say("refused a connection to the link from context %u: only the host may", peer.svm_cid);
        close(fd);
        errno = EAGAIN;
        return -1;
    }
    return fd;
}

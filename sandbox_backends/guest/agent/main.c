/* The guest agent: the init of every sandbox. docs/protocol/agent.md says what it does. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "agent.h"
#include "machine.h"
#include "util.h"

enum { GRACE_OF_A_SIGNAL_MS = 2000 };

static bool stream_opened(struct link *l, struct stream *s, const uint8_t *bytes, size_t size) {
    struct agent *a = l->owner;
    if (size == 0)
        return false;
    switch (bytes[0]) {
    case KIND_CONTROL:
        return control_open(a, s, bytes + 1, size - 1);
    case KIND_PROCESS:
        return process_open(a, s, bytes + 1, size - 1);
    case KIND_COPY:
        return copy_open(a, s, bytes + 1, size - 1);
    case KIND_ADOPT:
        return adopt_open(a, s, bytes + 1, size - 1);
    case KIND_DIAL:
        return dial_open(a, s, bytes + 1, size - 1);
    case KIND_TUNNEL:
        return tunnel_open(a, s, bytes + 1, size - 1);
    default:
        stream_close(s, "this agent does not know such streams");
        return true;
    }
}

static void socket_ended(struct link *l) {
    link_attach(l, -1);
    power_off(l->owner, 0, EXIT_LINK_GONE);
}

/* A port has no end of its own: the next host comes the same way. The dead-man timer runs. */
static void port_ended(struct link *l) { (void)l; }

static void vsock_ended(struct link *l) {
    int fd = l->watch.fd;
    link_attach(l, -1);
    close(fd);
}

/* The latest connection of the host counts: it knows when it has given up an earlier one. */
static void vsock_ready(struct watch *w, uint32_t events) {
    struct agent *a = w->owner;
    int fd = machine_accept_vsock(w->fd);
    (void)events;
    if (fd < 0)
        return;
    if (a->link.watch.fd >= 0)
        vsock_ended(&a->link);
    if (!link_attach(&a->link, fd))
        close(fd);
}

static void must_wait_for(bool waits) {
    if (waits)
        return;
    say("the link cannot be waited for: %s", strerror(errno));
    exit(EXIT_FAILURE_OTHER);
}

static void signals_ready(struct watch *w, uint32_t events) {
    struct agent *a = w->owner;
    struct signalfd_siginfo info;
    (void)events;
    while (read(w->fd, &info, sizeof info) == sizeof info)
        if (info.ssi_signo != SIGCHLD)
            power_off(a, GRACE_OF_A_SIGNAL_MS, EXIT_POWERED_OFF);
    processes_reap(a);
}

static void watch_signals(struct agent *a) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, NULL);
    a->signals = (struct watch){
        .fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC), .ready = signals_ready, .owner = a};
    if (a->signals.fd < 0 || !loop_watch(&a->loop, &a->signals, EPOLLIN)) {
        say("cannot wait for signals: %s", strerror(errno));
        exit(EXIT_FAILURE_OTHER);
    }
}

/* A kernel hands parameters it does not know to its init: what is not known here is ignored. */
static int parse_link(int argc, char **argv) {
    for (int i = 1; i + 1 < argc; i++)
        if (strcmp(argv[i], "--fd") == 0) {
            char *end;
            long fd = strtol(argv[i + 1], &end, 10);
            if (end != argv[i + 1] && *end == 0 && fd >= 0 && fd <= 1 << 20)
                return (int)fd;
        }
    say("usage: agent --fd NUMBER");
    exit(EXIT_USAGE);
}

static void use_socket(struct agent *a, int fd) {
    if (fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK) < 0) {
        say("descriptor %d: %s", fd, strerror(errno));
        exit(EXIT_USAGE);
    }
    a->link.ended = socket_ended;
    must_wait_for(link_attach(&a->link, fd));
}

static void use_machine(struct agent *a, const struct machine *m) {
    a->is_machine = true;
    a->group = m->group;
    if (m->is_vsock) {
        a->link.ended = vsock_ended;
        a->vsock = (struct watch){.fd = m->link, .ready = vsock_ready, .owner = a};
        must_wait_for(loop_watch(&a->loop, &a->vsock, EPOLLIN));
    } else {
        a->link.ended = port_ended;
        must_wait_for(link_attach(&a->link, m->link));
    }
}

int main(int argc, char **argv) {
    static struct agent agent = {.group = -1};
    struct machine machine;
    bool is_machine = machine_is_ours();
    int fd = is_machine ? -1 : parse_link(argc, argv);
    if (is_machine)
        machine_boot(&machine);
    system_prepare();
    loop_init(&agent.loop);
    link_init(&agent.link, &agent.loop);
    agent.link.open = stream_opened;
    agent.link.owner = &agent;
    if (is_machine)
        use_machine(&agent, &machine);
    else
        use_socket(&agent, fd);
    watch_signals(&agent);
    power_init(&agent);
    for (bool more = false; !agent.loop.stopped; power_check(&agent)) {
        loop_step(&agent.loop, !more);
        more = link_pump(&agent.link);
    }
    if (is_machine)
        machine_power_off();
    return agent.loop.status;
}

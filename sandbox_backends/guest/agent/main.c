/* The guest agent: the init of every sandbox. docs/protocol/agent.md says what it does. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "agent.h"
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
    case KIND_TUNNEL:
        return tunnel_open(a, s, bytes + 1, size - 1);
    default:
        stream_close(s, "this agent does not know such streams");
        return true;
    }
}

static void link_ended(struct link *l) { power_off(l->owner, 0, EXIT_LINK_GONE); }

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

int main(int argc, char **argv) {
    static struct agent agent;
    int fd = parse_link(argc, argv);
    if (fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK) < 0) {
        say("descriptor %d: %s", fd, strerror(errno));
        exit(EXIT_USAGE);
    }
    system_prepare(fd);
    loop_init(&agent.loop);
    link_init(&agent.link, &agent.loop, fd);
    agent.link.open = stream_opened;
    agent.link.ended = link_ended;
    agent.link.owner = &agent;
    watch_signals(&agent);
    power_init(&agent);
    for (bool more = false; !agent.loop.stopped; power_check(&agent)) {
        loop_step(&agent.loop, !more);
        more = link_pump(&agent.link);
    }
    return agent.loop.status;
}

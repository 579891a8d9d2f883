/* How it all ends: power off, and the dead-man timer (docs/protocol/agent.md, "Power off"). */
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "agent.h"
#include "util.h"

enum {
    DEAD_MAN_AT_FIRST_MS = 120000,
    AFTER_KILL_MS = 1000,   /* for the kernel to end what was killed */
    LAST_MESSAGES_MS = 500, /* for the host to take what is left of the output */
};

/* As an init the agent reaches everything in the sandbox. Else it is the subreaper of what it started, and reaches its
 * children: whoever is orphaned by their death becomes one, and is reached the next time. */
static void signal_all(struct agent *a, int signal) {
    if (getpid() == 1) {
        kill(-1, signal);
        return;
    }
    processes_signal(a, signal);
    char path[64];
    int child;
    snprintf(path, sizeof path, "/proc/self/task/%d/children", (int)getpid());
    FILE *children = fopen(path, "re");
    while (children != NULL && fscanf(children, "%d", &child) == 1)
        kill(child, signal);
    if (children != NULL)
        fclose(children);
}

static void leave(struct timer *timer) {
    struct agent *a = timer->owner;
    loop_stop(&a->loop, a->exit_status);
}

static void kill_all(struct timer *timer) {
    struct agent *a = timer->owner;
    a->power = POWER_KILLED;
    signal_all(a, SIGKILL);
    timer->fire = leave;
    loop_start_timer(&a->loop, timer, AFTER_KILL_MS);
}

void power_off(struct agent *a, int64_t grace_ms, int exit_status) {
    if (a->power >= POWER_KILLED)
        return;
    if (a->power == POWER_ON) {
        a->exit_status = exit_status;
        signal_all(a, SIGTERM);
    }
    a->power = POWER_ASKED;
    a->power_timer.fire = kill_all;
    if (grace_ms > 0)
        loop_start_timer(&a->loop, &a->power_timer, grace_ms);
    else
        kill_all(&a->power_timer);
}

void power_check(struct agent *a) {
    if (a->power == POWER_ON)
        return;
    if (processes_reap(a)) {
        if (a->power == POWER_KILLED)
            signal_all(a, SIGKILL);
        return;
    }
    if (!processes_have_streams(a) && link_idle(&a->link)) {
        loop_stop(&a->loop, a->exit_status);
    } else if (a->power != POWER_LEAVING) {
        a->power = POWER_LEAVING;
        a->power_timer.fire = leave;
        loop_start_timer(&a->loop, &a->power_timer, LAST_MESSAGES_MS);
    }
}

static void dead_man_check(struct timer *timer) {
    struct agent *a = timer->owner;
    int64_t left = a->link.last_heard + a->dead_man_ms - loop_now();
    if (left > 0) {
        loop_start_timer(&a->loop, timer, left);
        return;
    }
    say("nothing came over the link for %lld ms: powering off", (long long)a->dead_man_ms);
    power_off(a, 0, EXIT_LINK_GONE);
}

void power_set_dead_man(struct agent *a, int64_t milliseconds) {
    a->dead_man_ms = milliseconds;
    loop_stop_timer(&a->loop, &a->dead_man);
    if (milliseconds > 0)
        loop_start_timer(&a->loop, &a->dead_man, milliseconds);
}

void power_init(struct agent *a) {
    a->power_timer.owner = a;
    a->dead_man = (struct timer){.fire = dead_man_check, .owner = a};
    power_set_dead_man(a, DEAD_MAN_AT_FIRST_MS);
}

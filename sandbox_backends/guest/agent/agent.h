/* The agent as a whole. */
#ifndef III_AGENT_H
#define III_AGENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "link.h"
#include "loop.h"

enum { EXIT_POWERED_OFF = 0, EXIT_FAILURE_OTHER = 1, EXIT_USAGE = 2, EXIT_LINK_GONE = 3 };

struct process;
struct listener;
struct tunnel;

struct agent {
    struct loop loop;
    struct link link;
    struct watch signals;
    struct watch vsock; /* listens for the host where the link is such a socket */
    bool is_machine;    /* this is the init of a virtual machine */
    int group;          /* as machine.h's */

    struct process *processes; /* also those whose stream is gone, until they are reaped */

    struct stream *control;
    struct listener *listeners;
    struct tunnel *tunnels;
    unsigned unclaimed; /* tunnels that the host has not opened yet */
    uint64_t last_connection_id;

    int64_t dead_man_ms;
    struct timer dead_man;
    enum power { POWER_ON, POWER_ASKED, POWER_KILLED, POWER_LEAVING } power;
    int exit_status;
    struct timer power_timer;
};

/* OPEN of each kind of stream; bytes come after the kind. False for a violation. */
bool control_open(struct agent *a, struct stream *s, const uint8_t *bytes, size_t size);
bool process_open(struct agent *a, struct stream *s, const uint8_t *bytes, size_t size);
bool adopt_open(struct agent *a, struct stream *s, const uint8_t *bytes, size_t size);
bool copy_open(struct agent *a, struct stream *s, const uint8_t *bytes, size_t size);
bool tunnel_open(struct agent *a, struct stream *s, const uint8_t *bytes, size_t size);
bool dial_open(struct agent *a, struct stream *s, const uint8_t *bytes, size_t size);

/* process.c: children have ended (SIGCHLD); returns whether any is left. */
bool processes_reap(struct agent *a);
void processes_signal(struct agent *a, int signal);
bool processes_have_streams(const struct agent *a);

/* dial.c: a socket that is connected to a port of this machine, or that will be; -1 with errno. */
int dial_connect(uint16_t port, int family, bool *connecting);

/* tunnel.c */
int tunnel_listen(struct agent *a, uint16_t port, int family); /* 0 or an errno; one that is there is kept */
void tunnel_listeners_keep(struct agent *a);  /* an epoch is over: those of the next configuration stay */
void tunnel_listeners_close(struct agent *a, bool all); /* or those that were not asked for again */
void tunnel_adopt(struct agent *a, struct stream *s, int fd, bool connecting, uint16_t other_port); /* of the host's */
void tunnel_announce(struct agent *a); /* the control stream is there, or has message credit again */

/* stats.c: the fields of STATS */
void stats_add(const struct agent *a, struct payload *p);

/* power.c */
void power_init(struct agent *a);
void power_set_dead_man(struct agent *a, int64_t milliseconds); /* 0 for never */
void power_off(struct agent *a, int64_t grace_ms, int exit_status);
void power_check(struct agent *a); /* after each step: is it all over? */

/* system.c: what the agent does to itself and to the sandbox when it starts. */
void system_prepare(void);

#endif

/* A process that the host asked for. session.c begins it and hears the host, process.c hears it and ends it. */
#ifndef III_PROCESS_H
#define III_PROCESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "agent.h"
#include "flow.h"
#include "loop.h"

enum { CHANNEL_IN = 0, CHANNEL_OUT = 1, CHANNEL_ERR = 2 };
extern const uint8_t PROCESS_CHANNEL[2]; /* of the two sources */

enum process_state { STARTING, RUNNING, LINGERING, DRAINING, DONE };

struct process {
    struct process *next;
    struct agent *agent;
    struct stream *stream; /* NULL once gone */
    enum process_state state;
    bool tty, reaped, group_gone, over;
    pid_t pid;
    int wait_status;
    char *key; /* the host has released it: no stream until it is adopted under this name */
    int64_t linger_ms, linger_until;
    struct watch failure; /* the error pipe of spawn.h */
    struct watch in, out, err; /* with a terminal out is the master, and the others have none */
    struct source sources[2];
    struct sink sink;
    struct timer timer; /* lingering, or a terminal settling */
};

struct spawn_spec;

/* Start what spec asks for, or say why that fails; s is its stream from now on. */
void process_start(struct agent *a, struct stream *s, struct spawn_spec *spec);

/* Callbacks that session.c sets up. */
void process_source_over(struct source *source, int error);
void process_source_dry(struct source *source);
void process_sink_over(struct sink *sink, int error);
void process_failure_ready(struct watch *w, uint32_t events);

/* To its process group. */
void process_signal(struct process *p, int signal);
void process_kill(struct process *p);

/* The host lets go of it for a while; false if it may not. Takes the key. */
bool process_release(struct process *p, char *key);

/* The one that is kept under a key, or NULL; and to give it a stream again. */
struct process *process_find_kept(const struct agent *a, const char *key);
void process_adopt(struct process *p, struct stream *s);

/* The host forgets it: kill it, and free it once it is reaped. */
void process_abandon(struct process *p);

void process_send_spawn_error(struct stream *s, int error, const char *text);

#endif

/* Waiting: descriptors by epoll, timers, and memory that may be freed only when nobody can be called with it any more. */
#ifndef III_LOOP_H
#define III_LOOP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>

struct watch {
    int fd;
    bool watched;
    void (*ready)(struct watch *w, uint32_t events);
    void *owner;
};

struct timer {
    int64_t due; /* loop_now's milliseconds */
    bool armed;
    void (*fire)(struct timer *t);
    void *owner;
    struct timer *next;
};

enum { LOOP_BATCH = 64 };

struct loop {
    int epoll;
    struct timer *timers; /* by due time */
    struct epoll_event events[LOOP_BATCH];
    int event, event_count; /* of the batch that is being handled */
    void **garbage;
    unsigned garbage_count;
    bool stopped;
    int status;
};

void loop_init(struct loop *l);

/* events as for epoll_ctl. False if epoll refuses the descriptor. */
bool loop_watch(struct loop *l, struct watch *w, uint32_t events);

/* Stop watching; w is not called again. Does nothing if it was not watched. */
void loop_unwatch(struct loop *l, struct watch *w);
void loop_unwatch_and_close(struct loop *l, struct watch *w); /* fd becomes -1 */

int64_t loop_now(void);
void loop_start_timer(struct loop *l, struct timer *t, int64_t milliseconds);
void loop_stop_timer(struct loop *l, struct timer *t);

/* Free memory once the current events were handled. */
void loop_free_later(struct loop *l, void *memory);

/* Handle what is ready, waiting for it if there is no other work. */
void loop_step(struct loop *l, bool wait);
void loop_stop(struct loop *l, int status);

#endif

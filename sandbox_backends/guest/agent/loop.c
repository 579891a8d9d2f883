#include "loop.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "util.h"

void loop_init(struct loop *l) {
    *l = (struct loop){.epoll = epoll_create1(EPOLL_CLOEXEC)};
    if (l->epoll < 0) {
        say("epoll: %s", strerror(errno));
        exit(1);
    }
}

bool loop_watch(struct loop *l, struct watch *w, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = w};
    w->watched = epoll_ctl(l->epoll, EPOLL_CTL_ADD, w->fd, &event) == 0;
    return w->watched;
}

void loop_unwatch(struct loop *l, struct watch *w) {
    if (!w->watched)
        return;
    epoll_ctl(l->epoll, EPOLL_CTL_DEL, w->fd, NULL);
    w->watched = false;
    for (int i = l->event; i < l->event_count; i++)
        if (l->events[i].data.ptr == w)
            l->events[i].data.ptr = NULL;
}

void loop_unwatch_and_close(struct loop *l, struct watch *w) {
    loop_unwatch(l, w);
    if (w->fd >= 0)
        close(w->fd);
    w->fd = -1;
}

int64_t loop_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void loop_stop_timer(struct loop *l, struct timer *t) {
    if (!t->armed)
        return;
    t->armed = false;
    for (struct timer **at = &l->timers; *at != NULL; at = &(*at)->next)
        if (*at == t) {
            *at = t->next;
            return;
        }
}

void loop_start_timer(struct loop *l, struct timer *t, int64_t milliseconds) {
    loop_stop_timer(l, t);
    t->armed = true;
    t->due = loop_now() + milliseconds;
    struct timer **at = &l->timers;
    while (*at != NULL && (*at)->due <= t->due)
        at = &(*at)->next;
    t->next = *at;
    *at = t;
}

void loop_free_later(struct loop *l, void *memory) {
    l->garbage = must_realloc(l->garbage, (l->garbage_count + 1) * sizeof *l->garbage);
    l->garbage[l->garbage_count++] = memory;
}

static void fire_timers(struct loop *l) {
    int64_t now = loop_now();
    while (l->timers != NULL && l->timers->due <= now) {
        struct timer *t = l->timers;
        loop_stop_timer(l, t);
        t->fire(t);
    }
}

static void free_garbage(struct loop *l) {
    while (l->garbage_count > 0)
        free(l->garbage[--l->garbage_count]);
}

static int wait_time(const struct loop *l) {
    if (l->timers == NULL)
        return -1;
    int64_t left = l->timers->due - loop_now();
    return left < 0 ? 0 : left > 60000 ? 60000 : (int)left;
}

void loop_step(struct loop *l, bool wait) {
    l->event_count = epoll_wait(l->epoll, l->events, LOOP_BATCH, wait ? wait_time(l) : 0);
    for (l->event = 0; l->event < l->event_count; l->event++) {
        struct watch *w = l->events[l->event].data.ptr;
        if (w != NULL)
            w->ready(w, l->events[l->event].events);
    }
    l->event = l->event_count = 0;
    fire_timers(l);
    free_garbage(l);
}

void loop_stop(struct loop *l, int status) {
    l->stopped = true;
    l->status = status;
}

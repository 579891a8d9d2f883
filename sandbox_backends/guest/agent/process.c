/* Processes from STARTED to EXIT (docs/protocol/agent.md, "PROCESS"). */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "process.h"
#include "spawn.h"

enum {
    GROUP_CHECK_MS = 50,       /* nothing tells us of the end of a process that is not our child */
    TERMINAL_SETTLE_MS = 20,   /* output crosses a terminal by way of a kernel worker */
    TERMINAL_REST = 256 << 10, /* more than a terminal can hold */
};

const uint8_t PROCESS_CHANNEL[2] = {CHANNEL_OUT, CHANNEL_ERR};

/* --- the end --- */

static void close_streams(struct process *p) {
    struct loop *loop = &p->agent->loop;
    for (int i = 0; i < 2; i++)
        source_stop(&p->sources[i]);
    sink_stop(&p->sink);
    if (p->tty)
        p->in.fd = -1; /* it is out's */
    loop_unwatch_and_close(loop, &p->in);
    loop_unwatch_and_close(loop, &p->out);
    loop_unwatch_and_close(loop, &p->err);
}

static void free_if_over(struct process *p) {
    if (p->stream != NULL || p->key != NULL || !p->reaped || p->over)
        return;
    p->over = true;
    close_streams(p);
    loop_unwatch_and_close(&p->agent->loop, &p->failure);
    loop_stop_timer(&p->agent->loop, &p->timer);
    for (struct process **at = &p->agent->processes; *at != NULL; at = &(*at)->next)
        if (*at == p) {
            *at = p->next;
            break;
        }
    loop_free_later(&p->agent->loop, p);
}

static void send_exit(struct process *p) {
    p->state = DONE;
    close_streams(p);
    if (p->stream == NULL)
        return;
    struct payload message;
    payload_begin(&message, MESSAGE_EXIT);
    if (WIFSIGNALED(p->wait_status))
        payload_number(&message, TAG_SIGNAL, (uint64_t)WTERMSIG(p->wait_status));
    else
        payload_number(&message, TAG_CODE, (uint64_t)WEXITSTATUS(p->wait_status));
    stream_send(p->stream, &message);
    stream_close(p->stream, "");
}

static void exit_when_drained(struct process *p) {
    if (p->state == DRAINING && p->sources[0].ended && p->sources[1].ended)
        send_exit(p);
}

/* Send what is readable now, then EXIT. */
static void drain(struct process *p) {
    p->state = DRAINING;
    loop_stop_timer(&p->agent->loop, &p->timer);
    if (p->key != NULL)
        return; /* whoever adopts it will hear of it */
    for (int i = 0; i < 2; i++) {
        struct source *source = &p->sources[i];
        int readable = 0;
        if (source->ended)
            continue;
        if (p->tty) {
            source_limit(source, TERMINAL_REST);
            source_ready(source);
        } else {
            ioctl(source->fd, FIONREAD, &readable);
            source_ready(source);
            source_limit(source, readable);
        }
    }
    exit_when_drained(p);
}

void process_source_over(struct source *source, int error) {
    struct process *p = source->owner;
    (void)error; /* a terminal without processes says EIO; it is over all the same */
    if (p->stream != NULL)
        stream_send_eof(p->stream, source->channel);
    if (p->state != DRAINING && !p->tty) /* the descriptor may go: nobody reads it any more */
        loop_unwatch_and_close(&p->agent->loop, source->channel == CHANNEL_OUT ? &p->out : &p->err);
    exit_when_drained(p);
}

static void terminal_settled(struct timer *timer) {
    struct process *p = timer->owner;
    struct source *source = &p->sources[0];
    if (p->state == DRAINING && !source->ended && !source->ready && !source->queued)
        source_limit(source, 0);
}

void process_source_dry(struct source *source) {
    struct process *p = source->owner;
    if (p->state != DRAINING)
        return;
    if (p->tty) {
        p->timer.fire = terminal_settled;
        loop_start_timer(&p->agent->loop, &p->timer, TERMINAL_SETTLE_MS);
    } else {
        source_limit(source, 0); /* somebody else took it */
    }
}

void process_sink_over(struct sink *sink, int error) {
    struct process *p = sink->owner;
    (void)error; /* EPIPE: the process reads no more; what comes is dropped */
    if (!p->tty)
        loop_unwatch_and_close(&p->agent->loop, &p->in);
}

/* --- signals and death --- */

void process_signal(struct process *p, int signal) {
    if (p->state == DONE || p->group_gone)
        return; /* the id may be another group's by now */
    if (kill(-p->pid, signal) < 0 && !p->reaped)
        kill(p->pid, signal); /* it has no group of its own yet */
}

void process_kill(struct process *p) {
    process_signal(p, SIGKILL);
    p->linger_ms = 0;
    close_streams(p);
    if (p->state == LINGERING || p->state == DRAINING)
        drain(p);
}

static bool group_is_gone(struct process *p) {
    p->group_gone = p->group_gone || (p->reaped && kill(-p->pid, 0) < 0 && errno == ESRCH);
    return p->group_gone;
}

static void check_linger(struct process *p) {
    int64_t left = p->linger_until - loop_now();
    if (left <= 0 || group_is_gone(p)) {
        drain(p);
        return;
    }
    loop_start_timer(&p->agent->loop, &p->timer, left < GROUP_CHECK_MS ? left : GROUP_CHECK_MS);
}

static void linger_tick(struct timer *timer) { check_linger(timer->owner); }

static void leader_ended(struct process *p, int wait_status) {
    p->reaped = true;
    p->wait_status = wait_status;
    if (p->state == STARTING)
        process_failure_ready(&p->failure, EPOLLIN);
    if (p->state == RUNNING && p->linger_ms > 0) {
        p->state = LINGERING;
        p->linger_until = loop_now() + p->linger_ms;
        p->timer.fire = linger_tick;
        check_linger(p);
    } else if (p->state == RUNNING) {
        drain(p);
    }
    free_if_over(p);
}

bool processes_reap(struct agent *a) {
    int wait_status;
    pid_t pid;
    while ((pid = waitpid(-1, &wait_status, WNOHANG)) > 0)
        for (struct process *p = a->processes; p != NULL; p = p->next)
            if (p->pid == pid && !p->reaped) {
                leader_ended(p, wait_status);
                break;
            }
    for (struct process *p = a->processes, *next; p != NULL; p = next) {
        next = p->next;
        if (group_is_gone(p) && p->state == LINGERING)
            check_linger(p);
    }
    return pid == 0;
}

void processes_signal(struct agent *a, int signal) {
    for (struct process *p = a->processes; p != NULL; p = p->next)
        process_signal(p, signal);
}

bool processes_have_streams(const struct agent *a) {
    for (const struct process *p = a->processes; p != NULL; p = p->next)
        if (p->stream != NULL)
            return true;
    return false;
}

/* --- the beginning --- */

void process_send_spawn_error(struct stream *s, int error, const char *text) {
    struct payload message;
    payload_begin(&message, MESSAGE_SPAWN_ERROR);
    payload_number(&message, TAG_ERRNO, (uint64_t)error);
    payload_text(&message, TAG_TEXT, text);
    stream_send(s, &message);
    stream_close(s, "");
}

static void send_started(struct process *p) {
    struct payload message;
    payload_begin(&message, MESSAGE_STARTED);
    payload_number(&message, TAG_PID, (uint64_t)p->pid);
    stream_send(p->stream, &message);
}

static void started(struct process *p) {
    p->state = RUNNING;
    if (p->stream != NULL)
        send_started(p);
    for (int i = 0; i < 2; i++)
        source_ready(&p->sources[i]);
}

static void forget_key(struct process *p) {
    free(p->key);
    p->key = NULL;
}

void process_failure_ready(struct watch *w, uint32_t events) {
    struct process *p = w->owner;
    struct spawn_failure failure;
    (void)events;
    ssize_t count = read(w->fd, &failure, sizeof failure); /* written at once, so it is read at once */
    if (count < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    loop_unwatch_and_close(&p->agent->loop, w);
    if (count != sizeof failure) {
        started(p);
        return;
    }
    p->state = DONE;
    close_streams(p);
    failure.text[sizeof failure.text - 1] = 0;
    forget_key(p); /* there is nothing to adopt */
    if (p->stream != NULL)
        process_send_spawn_error(p->stream, failure.error, failure.text);
    free_if_over(p);
}

void process_abandon(struct process *p) {
    process_kill(p);
    p->sink.stream = NULL;
    p->stream = NULL;
    free_if_over(p);
}

/* --- from host to host --- */

bool process_release(struct process *p, char *key) {
    if (p->tty || p->in.fd >= 0 || *key == 0 || strlen(key) > MAX_KEY || process_find_kept(p->agent, key) != NULL) {
        free(key);
        return false;
    }
    struct stream *s = p->stream;
    for (int i = 0; i < 2; i++)
        source_detach(&p->sources[i]);
    p->key = key;
    p->stream = p->sink.stream = NULL;
    s->ops = NULL;
    s->owner = NULL;
    stream_close(s, "");
    return true;
}

struct process *process_find_kept(const struct agent *a, const char *key) {
    for (struct process *p = a->processes; p != NULL; p = p->next)
        if (p->key != NULL && strcmp(p->key, key) == 0)
            return p;
    return NULL;
}

void process_adopt(struct process *p, struct stream *s) {
    forget_key(p);
    p->stream = p->sink.stream = s;
    if (p->state != STARTING)
        send_started(p);
    for (int i = 0; i < 2; i++) {
        struct source *source = &p->sources[i];
        if (source->ended) {
            stream_send_eof(s, PROCESS_CHANNEL[i]);
            continue;
        }
        source_start(source, s, PROCESS_CHANNEL[i], source->fd);
        if (p->state != STARTING)
            source_ready(source);
    }
    if (p->state == DRAINING)
        drain(p);
}

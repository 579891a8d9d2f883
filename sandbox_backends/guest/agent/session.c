/* Processes as the host sees them: OPEN, input, messages (docs/protocol/agent.md, "PROCESS" and "ADOPT"). */
#include <errno.h>
#include <stdlib.h>

#include "process.h"
#include "pty.h"
#include "spawn.h"
#include "util.h"

enum { END_OF_FILE_CHARACTER = 4 };


/* --- what the process says --- */

static void pipe_readable(struct watch *w, uint32_t events) {
    (void)events;
    struct process *p = w->owner;
    if (p->state != STARTING)
        source_ready(&p->sources[w == &p->out ? 0 : 1]);
}

static void pipe_writable(struct watch *w, uint32_t events) {
    (void)events;
    sink_flush(&((struct process *)w->owner)->sink);
}

static void terminal_ready(struct watch *w, uint32_t events) {
    struct process *p = w->owner;
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR) && p->state != STARTING)
        source_ready(&p->sources[0]);
    if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
        sink_flush(&p->sink);
}

static void watch_fd(struct process *p, struct watch *w, int fd, uint32_t events,
                     void (*ready)(struct watch *, uint32_t)) {
    *w = (struct watch){.fd = fd, .ready = ready, .owner = p};
    if (fd >= 0)
        loop_watch(&p->agent->loop, w, events | EPOLLET);
}

static void take(struct process *p, const struct spawned *spawned) {
    p->pid = spawned->pid;
    watch_fd(p, &p->failure, spawned->failure, EPOLLIN, process_failure_ready);
    if (p->tty) {
        p->in = (struct watch){.fd = -1};
        watch_fd(p, &p->out, spawned->out, EPOLLIN | EPOLLOUT, terminal_ready);
    } else {
        watch_fd(p, &p->in, spawned->in, EPOLLOUT, pipe_writable);
        watch_fd(p, &p->out, spawned->out, EPOLLIN, pipe_readable);
    }
    watch_fd(p, &p->err, spawned->err, EPOLLIN, pipe_readable);
    const int read_from[2] = {spawned->out, spawned->err};
    for (int i = 0; i < 2; i++) {
        p->sources[i] = (struct source){.end = process_source_over, .dry = process_source_dry, .owner = p};
        if (read_from[i] >= 0)
            source_start(&p->sources[i], p->stream, PROCESS_CHANNEL[i], read_from[i]);
        else
            p->sources[i].ended = true;
    }
    p->sink = (struct sink){.end = process_sink_over, .owner = p, .ended = spawned->in < 0};
    sink_start(&p->sink, p->stream, spawned->in);
}

/* --- what the host says --- */

static bool process_data(struct stream *s, uint8_t channel, const uint8_t *bytes, size_t size) {
    struct process *p = s->owner;
    if (channel != CHANNEL_IN)
        return false;
    sink_write(&p->sink, bytes, size);
    return true;
}

static bool process_eof(struct stream *s, uint8_t channel) {
    static const uint8_t TYPED[] = {END_OF_FILE_CHARACTER};
    struct process *p = s->owner;
    if (channel != CHANNEL_IN)
        return false;
    if (p->tty)
        sink_write(&p->sink, TYPED, sizeof TYPED);
    else
        sink_eof(&p->sink);
    return true;
}

/* The only text of those messages; the last one counts. */
static bool read_key(const struct fields *f, char **key) {
    free(*key);
    return (*key = field_text(f)) != NULL;
}

static bool process_message(struct stream *s, const uint8_t *bytes, size_t size) {
    struct process *p = s->owner;
    uint64_t signal = 0, rows = 0, cols = 0;
    char *key = NULL;
    bool fine = true;
    if (size == 0)
        return false;
    struct fields f = {.next = bytes + 1, .end = bytes + size};
    enum field field;
    while (fine && (field = fields_next(&f)) == FIELD_THERE)
        fine = (f.tag != TAG_SIGNAL || field_number(&f, 1, 64, &signal)) &&
               (f.tag != TAG_ROWS || field_number(&f, 1, UINT16_MAX, &rows)) &&
               (f.tag != TAG_COLS || field_number(&f, 1, UINT16_MAX, &cols)) &&
               (f.tag != TAG_KEY || read_key(&f, &key));
    fine = fine && field == FIELD_END;
    if (fine && bytes[0] == MESSAGE_RELEASE)
        return key != NULL && process_release(p, key);
    free(key);
    if (!fine)
        return false;
    if (bytes[0] == MESSAGE_SIGNAL && signal != 0)
        process_signal(p, (int)signal);
    else if (bytes[0] == MESSAGE_RESIZE && rows != 0 && cols != 0 && p->tty && p->out.fd >= 0)
        pty_resize(p->out.fd, (uint16_t)rows, (uint16_t)cols);
    return true;
}

static void process_closed(struct stream *s) { process_kill(s->owner); }

static void process_gone(struct stream *s) { process_abandon(s->owner); }

static const struct stream_ops PROCESS_OPS = {
    .data = process_data,
    .eof = process_eof,
    .message = process_message,
    .closed = process_closed,
    .gone = process_gone,
};

void process_start(struct agent *a, struct stream *s, struct spawn_spec *spec) {
    struct spawned spawned;
    struct spawn_failure failure;
    spec->keeps_capabilities = a->is_machine;
    spec->group = a->group;
    if (spec->unsupported) {
        process_send_spawn_error(s, EOPNOTSUPP, "the host asks for what this agent does not know");
        return;
    }
    if (!spawn_start(spec, &spawned, &failure)) {
        process_send_spawn_error(s, failure.error, failure.text);
        return;
    }
    struct process *p = must_alloc(sizeof *p);
    *p = (struct process){
        .next = a->processes, .agent = a, .stream = s, .tty = spec->tty, .linger_ms = spec->linger_ms};
    p->timer.owner = p;
    a->processes = p;
    s->ops = &PROCESS_OPS;
    s->owner = p;
    take(p, &spawned);
}

bool process_open(struct agent *a, struct stream *s, const uint8_t *bytes, size_t size) {
    struct spawn_spec spec;
    bool fine = spawn_parse(&spec, bytes, size);
    if (fine)
        process_start(a, s, &spec);
    spawn_free(&spec);
    return fine;
}

bool adopt_open(struct agent *a, struct stream *s, const uint8_t *bytes, size_t size) {
    struct fields f = {.next = bytes, .end = bytes + size};
    enum field field;
    char *key = NULL;
    bool fine = true, unsupported = false;
    while (fine && (field = fields_next(&f)) == FIELD_THERE) {
        fine = f.tag != TAG_KEY || read_key(&f, &key);
        unsupported = unsupported || f.tag & TAG_CRITICAL;
    }
    fine = fine && field == FIELD_END && key != NULL;
    struct process *p = fine ? process_find_kept(a, key) : NULL;
    free(key);
    if (fine && unsupported) {
        process_send_spawn_error(s, EOPNOTSUPP, "the host asks for what this agent does not know");
    } else if (fine && p == NULL) {
        process_send_spawn_error(s, ESRCH, "no process is kept under that key");
    } else if (fine) {
        s->ops = &PROCESS_OPS;
        s->owner = p;
        process_adopt(p, s);
    }
    return fine;
}

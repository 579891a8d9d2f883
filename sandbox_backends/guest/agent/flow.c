#include "flow.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "util.h"

void source_start(struct source *s, struct stream *stream, uint8_t channel, int fd) {
    s->stream = stream;
    s->channel = channel;
    s->fd = fd;
    s->budget = NO_BUDGET;
    for (int i = 0; i < SOURCES_PER_STREAM; i++)
        if (stream->sources[i] == NULL) {
            stream->sources[i] = s;
            break;
        }
}

void source_stop(struct source *s) {
    s->ended = true;
    s->ready = false;
    if (s->stream == NULL)
        return;
    for (int i = 0; i < SOURCES_PER_STREAM; i++)
        if (s->stream->sources[i] == s)
            s->stream->sources[i] = NULL;
    if (s->queued)
        link_leave_turns(s->stream->link, s);
    s->queued = false;
    s->stream = NULL;
}

void source_detach(struct source *s) {
    bool ended = s->ended;
    source_stop(s);
    s->ended = ended;
}

static void end_source(struct source *s, int error) {
    source_stop(s);
    s->end(s, error);
}

static bool has_credit(const struct source *s) { return s->stream->data_credit > DATA_OVERHEAD; }

void source_resume(struct source *s) {
    if (s->ready && !s->queued && !s->ended && has_credit(s)) {
        s->queued = true;
        link_take_turn(s->stream->link, s);
    }
}

void source_ready(struct source *s) {
    if (s->stream == NULL || s->ended)
        return;
    s->ready = true;
    source_resume(s);
}

void source_limit(struct source *s, int64_t budget) {
    s->budget = budget;
    if (budget == 0 && !s->ended)
        end_source(s, 0);
}

void source_turn(struct source *s) {
    s->queued = false;
    if (s->ended || !has_credit(s))
        return;
    struct stream *stream = s->stream;
    size_t room = (size_t)(stream->data_credit - DATA_OVERHEAD);
    if (room > MAX_DATA)
        room = MAX_DATA;
    if (s->budget != NO_BUDGET && room > (size_t)s->budget)
        room = (size_t)s->budget;
    uint8_t *at = link_reserve(stream->link, DATA_OVERHEAD + room);
    ssize_t count = read(s->fd, at + DATA_OVERHEAD, room);
    if (count > 0) {
        size_t size = DATA_OVERHEAD + (size_t)count;
        *frame_header(at, FRAME_DATA, stream->id, (size_t)count + 1) = s->channel;
        link_commit(stream->link, size);
        stream->data_credit -= (int64_t)size;
        if (s->budget != NO_BUDGET && (s->budget -= count) == 0)
            end_source(s, 0);
        else
            source_resume(s);
    } else if (count < 0 && errno == EINTR) {
        source_resume(s);
    } else if (count < 0 && errno == EAGAIN) {
        s->ready = false;
        if (s->dry != NULL)
            s->dry(s);
    } else {
        end_source(s, count == 0 ? 0 : errno);
    }
}

void sink_start(struct sink *s, struct stream *stream, int fd) {
    s->stream = stream;
    s->fd = fd;
}

static void drop(struct sink *s) {
    free(s->bytes);
    s->bytes = NULL;
    s->start = s->size = s->capacity = 0;
}

void sink_stop(struct sink *s) {
    s->ended = true;
    drop(s);
}

bool sink_empty(const struct sink *s) { return s->size == 0; }

static void end_sink(struct sink *s, int error) {
    sink_stop(s);
    s->end(s, error);
}

static void consumed(struct sink *s, size_t size) {
    if (s->stream != NULL)
        stream_consumed(s->stream, size);
}

/* Write as much as goes; returns how much, or -1 after an error other than EAGAIN, which ended the sink. */
static ssize_t write_some(struct sink *s, const uint8_t *bytes, size_t size) {
    size_t done = 0;
    while (done < size) {
        ssize_t count = write(s->fd, bytes + done, size - done);
        if (count >= 0) {
            done += (size_t)count;
        } else if (errno == EAGAIN) {
            break;
        } else if (errno != EINTR) {
            return -1;
        }
    }
    return (ssize_t)done;
}

static void hold(struct sink *s, const uint8_t *bytes, size_t size) {
    if (s->bytes == NULL) {
        s->capacity = DATA_WINDOW + 1; /* more was never granted, but a terminal's ^D comes on top */
        s->bytes = must_alloc(s->capacity);
    }
    for (size_t done = 0; done < size;) {
        size_t at = (s->start + s->size) % s->capacity;
        size_t run = s->capacity - at < size - done ? s->capacity - at : size - done;
        memcpy(s->bytes + at, bytes + done, run);
        s->size += run;
        done += run;
    }
}

void sink_write(struct sink *s, const uint8_t *bytes, size_t size) {
    if (s->ended) {
        consumed(s, size);
        return;
    }
    ssize_t written = 0;
    if (s->size == 0 && (written = write_some(s, bytes, size)) < 0) {
        int error = errno;
        consumed(s, size);
        end_sink(s, error);
        return;
    }
    if ((size_t)written < size)
        hold(s, bytes + written, size - (size_t)written);
    consumed(s, (size_t)written);
}

void sink_flush(struct sink *s) {
    while (!s->ended && s->size > 0) {
        size_t run = s->capacity - s->start < s->size ? s->capacity - s->start : s->size;
        ssize_t written = write_some(s, s->bytes + s->start, run);
        if (written < 0) {
            int error = errno;
            consumed(s, s->size);
            end_sink(s, error);
            return;
        }
        s->start = (s->start + (size_t)written) % s->capacity;
        s->size -= (size_t)written;
        consumed(s, (size_t)written);
        if ((size_t)written < run)
            return;
    }
    if (!s->ended && s->bytes != NULL)
        drop(s);
    if (!s->ended && s->eof)
        end_sink(s, 0);
}

void sink_eof(struct sink *s) {
    s->eof = true;
    if (!s->ended && s->size == 0)
        end_sink(s, 0);
}

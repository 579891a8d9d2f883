/* Bytes between descriptors and streams. A source reads only what the host gives credit for, a sink holds at most one
 * window: so nothing piles up here, whoever is slow. The descriptors are non-blocking and belong to the owner. */
#ifndef III_FLOW_H
#define III_FLOW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "link.h"

enum { NO_BUDGET = -1 };

struct source {
    struct stream *stream;
    uint8_t channel;
    int fd;
    int64_t budget; /* how many bytes more may be read before it has ended, or NO_BUDGET */
    bool ready, queued, ended;
    void (*end)(struct source *s, int error); /* 0 for end of file, or for the end of the budget */
    void (*dry)(struct source *s);            /* nothing to read right now; may be NULL */
    void *owner;
    struct source *next;
};

/* Start; s is zeroed but for end, dry and owner. */
void source_start(struct source *s, struct stream *stream, uint8_t channel, int fd);
void source_stop(struct source *s); /* without calling end */
void source_detach(struct source *s); /* from its stream; source_start gives it another, unless it has ended */

/* The descriptor may have something to read. */
void source_ready(struct source *s);

/* From now on end after that many bytes; may call end at once. */
void source_limit(struct source *s, int64_t budget);

/* For the link: the stream has credit again; send one frame. */
void source_resume(struct source *s);
void source_turn(struct source *s);

struct sink {
    struct stream *stream; /* gets the credit back; NULL once it is gone */
    int fd;
    uint8_t *bytes;
    size_t start, size, capacity;
    bool eof, ended;
    void (*end)(struct sink *s, int error); /* all was written and eof was asked for (0), or writing failed */
    void *owner;
};

void sink_start(struct sink *s, struct stream *stream, int fd);
void sink_stop(struct sink *s); /* drops what is left */
void sink_write(struct sink *s, const uint8_t *bytes, size_t size);
void sink_eof(struct sink *s);

/* The descriptor takes bytes again. */
void sink_flush(struct sink *s);
bool sink_empty(const struct sink *s);

#endif

/* The agent's end of the framed link: handshake, streams, credit, taking turns (docs/protocol/link.md). */
#ifndef III_LINK_H
#define III_LINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "frame.h"
#include "loop.h"
#include "tlv.h"
#include "wire.h"

struct link;
struct source;
struct stream;

/* What a stream's owner does. Functions that return bool say false for a violation. */
struct stream_ops {
    bool (*data)(struct stream *s, uint8_t channel, const uint8_t *bytes, size_t size);
    bool (*eof)(struct stream *s, uint8_t channel);
    bool (*message)(struct stream *s, const uint8_t *bytes, size_t size);
    void (*credit)(struct stream *s); /* may be NULL */
    void (*closed)(struct stream *s); /* the host said CLOSE; say stream_close when done */
    void (*gone)(struct stream *s);   /* s is about to be freed: forget it */
};

enum { SOURCES_PER_STREAM = 2 };

struct stream {
    uint32_t id;
    struct link *link;
    const struct stream_ops *ops;
    void *owner;
    struct source *sources[SOURCES_PER_STREAM];
    int64_t data_credit, message_credit;      /* what the host takes */
    int64_t data_allowed, message_allowed;    /* what it may send */
    uint32_t data_consumed, message_consumed; /* not given back yet */
    uint8_t eof_received;                     /* bit per channel */
    bool close_sent, close_received;
};

struct link {
    struct loop *loop;
    struct watch watch;
    struct parser parser;
    uint8_t *out; /* whole frames, of which the first may be half written */
    size_t out_start, out_end, out_capacity;
    bool readable, writable;
    uint64_t epoch, peer_epoch; /* peer_epoch is 0 until synchronised */
    uint32_t peer_data_window, peer_message_window;
    uint32_t last_id;
    struct stream *streams[MAX_STREAMS];
    unsigned stream_count;
    struct source *first_turn, *last_turn; /* sources with something to send */
    int64_t last_heard;
    bool (*open)(struct link *l, struct stream *s, const uint8_t *bytes, size_t size); /* sets ops; false: violation */
    void (*ended)(struct link *l); /* all streams are gone; the owner may attach another descriptor, now or later */
    void *owner;
};

void link_init(struct link *l, struct loop *loop);

/* Use that descriptor, which is non-blocking and stays open; -1 for none. What came over another one is forgotten. False if
 * it cannot be waited for. */
bool link_attach(struct link *l, int fd);

/* Send what can be sent; true if there is more to do right away. Call it after every loop step. */
bool link_pump(struct link *l);
bool link_idle(const struct link *l); /* nothing waits to be written */

/* Messages are sent whatever their credit is: see stream_may_send. The payload is freed. */
void stream_send(struct stream *s, struct payload *p);
bool stream_may_send(const struct stream *s);
void stream_send_eof(struct stream *s, uint8_t channel);

/* Say CLOSE, once. If the host has said it already, s is gone when this returns. */
void stream_close(struct stream *s, const char *reason);

/* Give credit for data that was dealt with. */
void stream_consumed(struct stream *s, size_t data);

/* For sources (flow.h): room for a frame at the end of what waits, and saying how much of it was used. */
uint8_t *link_reserve(struct link *l, size_t size);
void link_commit(struct link *l, size_t size);
void link_take_turn(struct link *l, struct source *source);
void link_leave_turns(struct link *l, struct source *source);

#endif

#include "link.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "flow.h"
#include "util.h"

enum {
    OUT_LOW = 64 << 10,  /* sources get a turn while less than this waits: control frames wait behind no more */
    OUT_HIGH = 1 << 20,  /* nothing is read while more than this waits */
    READS_PER_PUMP = 4,  /* so that neither direction starves the other */
    TURNS_PER_PUMP = 16,
};

/* --- what waits to be written --- */

static size_t waiting(const struct link *l) { return l->out_end - l->out_start; }

bool link_idle(const struct link *l) { return waiting(l) == 0; }

uint8_t *link_reserve(struct link *l, size_t size) {
    if (l->out_capacity - l->out_end < size && l->out_start > 0) {
        memmove(l->out, l->out + l->out_start, waiting(l));
        l->out_end -= l->out_start;
        l->out_start = 0;
    }
    if (l->out_capacity - l->out_end < size) {
        l->out_capacity = 2 * l->out_capacity + size;
        l->out = must_realloc(l->out, l->out_capacity);
    }
    return l->out + l->out_end;
}

void link_commit(struct link *l, size_t size) { l->out_end += size; }

static void send_frame(struct link *l, uint8_t type, uint32_t stream, const void *payload, size_t size) {
    uint8_t *at = frame_header(link_reserve(l, FRAME_HEADER + size), type, stream, size);
    if (size > 0)
        memcpy(at, payload, size);
    link_commit(l, FRAME_HEADER + size);
}

static void send_hello(struct link *l) {
    uint8_t hello[HELLO_SIZE];
    memcpy(hello, MAGIC, MAGIC_SIZE);
    put_u64(hello + 16, l->epoch);
    put_u64(hello + 24, l->peer_epoch);
    put_u16(hello + 32, LINK_VERSION);
    put_u16(hello + 34, 0);
    put_u64(hello + 36, 0);
    put_u32(hello + 44, MAX_MESSAGE);
    put_u32(hello + 48, MAX_STREAMS);
    put_u32(hello + 52, DATA_WINDOW);
    put_u32(hello + 56, MESSAGE_WINDOW);
    send_frame(l, FRAME_HELLO, 0, hello, sizeof hello);
}

static void forget_epoch(struct link *l);

/* A port of a machine says end of file while nobody holds its other end, and may go on later. */
static void end(struct link *l) {
    l->readable = l->writable = false;
    forget_epoch(l);
    parser_desynchronise(&l->parser);
    l->ended(l);
}

static void flush(struct link *l) {
    while (l->writable && waiting(l) > 0) {
        ssize_t count = write(l->watch.fd, l->out + l->out_start, waiting(l));
        if (count > 0) {
            l->out_start += (size_t)count;
        } else if (count < 0 && errno == EAGAIN) {
            l->writable = false;
        } else if (count == 0 || errno != EINTR) {
            end(l);
            return;
        }
    }
    if (waiting(l) == 0)
        l->out_start = l->out_end = 0;
}

/* --- turns --- */

void link_take_turn(struct link *l, struct source *source) {
    source->next = NULL;
    if (l->last_turn != NULL)
        l->last_turn->next = source;
    else
        l->first_turn = source;
    l->last_turn = source;
}

void link_leave_turns(struct link *l, struct source *source) {
    struct source *before = NULL;
    for (struct source *s = l->first_turn; s != NULL; before = s, s = s->next) {
        if (s != source)
            continue;
        if (before != NULL)
            before->next = s->next;
        else
            l->first_turn = s->next;
        if (l->last_turn == s)
            l->last_turn = before;
        return;
    }
}

static void give_turns(struct link *l) {
    for (int i = 0; i < TURNS_PER_PUMP && l->first_turn != NULL && waiting(l) < OUT_LOW; i++) {
        struct source *source = l->first_turn;
        link_leave_turns(l, source);
        source_turn(source);
    }
}

/* --- streams --- */

static struct stream *find_stream(const struct link *l, uint32_t id) {
    for (unsigned i = l->stream_count; i-- > 0;)
        if (l->streams[i]->id == id)
            return l->streams[i];
    return NULL;
}

static void remove_stream(struct stream *s) {
    struct link *l = s->link;
    for (unsigned i = 0; i < l->stream_count; i++)
        if (l->streams[i] == s) {
            l->streams[i] = l->streams[--l->stream_count];
            break;
        }
    if (s->ops != NULL)
        s->ops->gone(s);
    loop_free_later(l->loop, s);
}

void stream_close(struct stream *s, const char *reason) {
    if (s->close_sent)
        return;
    s->close_sent = true;
    size_t size = strlen(reason);
    send_frame(s->link, FRAME_CLOSE, s->id, reason, size > MAX_REASON ? MAX_REASON : size);
    if (s->close_received)
        remove_stream(s);
}

bool stream_may_send(const struct stream *s) { return s->message_credit > 0 && !s->close_sent; }

void stream_send(struct stream *s, struct payload *p) {
    const uint8_t *bytes = p->bytes;
    size_t left = p->size;
    if (!s->close_sent) {
        for (; left > MAX_PAYLOAD; bytes += MAX_PAYLOAD, left -= MAX_PAYLOAD) {
            send_frame(s->link, FRAME_PART, s->id, bytes, MAX_PAYLOAD);
            s->message_credit -= FRAME_HEADER + MAX_PAYLOAD;
        }
        send_frame(s->link, FRAME_MESSAGE, s->id, bytes, left);
        s->message_credit -= (int64_t)(FRAME_HEADER + left);
    }
    payload_free(p);
}

void stream_send_eof(struct stream *s, uint8_t channel) {
    if (!s->close_sent && !s->close_received)
        send_frame(s->link, FRAME_EOF, s->id, &channel, 1);
}

static void give_credit(struct stream *s) {
    if (s->close_sent || s->close_received ||
        (s->data_consumed < DATA_WINDOW / 2 && s->message_consumed < MESSAGE_WINDOW / 2))
        return;
    uint8_t credit[8];
    put_u32(credit, s->data_consumed);
    put_u32(credit + 4, s->message_consumed);
    send_frame(s->link, FRAME_CREDIT, s->id, credit, sizeof credit);
    s->data_allowed += s->data_consumed;
    s->message_allowed += s->message_consumed;
    s->data_consumed = s->message_consumed = 0;
}

void stream_consumed(struct stream *s, size_t data) {
    s->data_consumed += (uint32_t)data;
    give_credit(s);
}

/* --- what the host says; false is a violation --- */

static bool handle_open(struct link *l, const struct frame *f) {
    if (f->stream <= l->last_id || l->stream_count == MAX_STREAMS)
        return false;
    l->last_id = f->stream;
    struct stream *s = must_alloc(sizeof *s);
    *s = (struct stream){
        .id = f->stream,
        .link = l,
        .data_credit = l->peer_data_window,
        .message_credit = l->peer_message_window,
        .data_allowed = DATA_WINDOW,
        .message_allowed = MESSAGE_WINDOW,
    };
    l->streams[l->stream_count++] = s;
    return l->open(l, s, f->payload, f->size);
}

static bool handle_data(struct stream *s, const struct frame *f) {
    uint8_t channel = f->payload[0];
    s->data_allowed -= f->cost;
    if (channel > MAX_CHANNEL || s->eof_received & 1 << channel || s->data_allowed < 0)
        return false;
    if (s->close_sent)
        return true;
    stream_consumed(s, DATA_OVERHEAD);
    return s->ops->data(s, channel, f->payload + 1, f->size - 1);
}

static bool handle_eof(struct stream *s, uint8_t channel) {
    if (channel > MAX_CHANNEL || s->eof_received & 1 << channel)
        return false;
    s->eof_received |= (uint8_t)(1 << channel);
    return s->close_sent || s->ops->eof(s, channel);
}

static bool handle_message(struct stream *s, const struct frame *f) {
    if (s->message_allowed <= 0)
        return false;
    s->message_allowed -= f->cost;
    if (s->close_sent)
        return true;
    s->message_consumed += f->cost;
    give_credit(s);
    return s->ops->message(s, f->payload, f->size);
}

static bool handle_credit(struct stream *s, const uint8_t *credit) {
    s->data_credit += get_u32(credit);
    s->message_credit += get_u32(credit + 4);
    if (s->data_credit > INT32_MAX || s->message_credit > INT32_MAX)
        return false;
    if (s->close_sent)
        return true;
    for (int i = 0; i < SOURCES_PER_STREAM; i++)
        if (s->sources[i] != NULL)
            source_resume(s->sources[i]);
    if (s->ops->credit != NULL)
        s->ops->credit(s);
    return true;
}

static void handle_close(struct stream *s) {
    s->close_received = true;
    if (s->close_sent)
        remove_stream(s);
    else
        s->ops->closed(s);
}

static bool handle_of_stream(struct link *l, const struct frame *f) {
    struct stream *s = find_stream(l, f->stream);
    if (s == NULL || s->close_received)
        return false;
    switch (f->type) {
    case FRAME_DATA:
        return handle_data(s, f);
    case FRAME_EOF:
        return handle_eof(s, f->payload[0]);
    case FRAME_MESSAGE:
        return handle_message(s, f);
    case FRAME_CREDIT:
        return handle_credit(s, f->payload);
    default:
        handle_close(s);
        return true;
    }
}

/* Forget all streams of the epoch. What waits is dropped too: a host that begins anew looks for its HELLO. */
static void forget_epoch(struct link *l) {
    while (l->stream_count > 0)
        remove_stream(l->streams[l->stream_count - 1]);
    l->last_id = 0;
    l->peer_epoch = 0;
    l->out_start = l->out_end = 0;
}

static void handle_hello(struct link *l, const uint8_t *hello) {
    uint64_t epoch = get_u64(hello + 16);
    if (epoch != l->peer_epoch) {
        forget_epoch(l);
        l->peer_epoch = epoch;
        l->peer_data_window = get_u32(hello + 52) & INT32_MAX;
        l->peer_message_window = get_u32(hello + 56) & INT32_MAX;
    }
    send_hello(l);
    if (get_u16(hello + 32) != LINK_VERSION) { /* the host will say so to people; wait for another */
        say("the host speaks version %u of the link, this agent speaks version %d", get_u16(hello + 32), LINK_VERSION);
        l->peer_epoch = 0;
        parser_desynchronise(&l->parser);
    }
}

static bool handle(struct link *l, const struct frame *f) {
    switch (f->type) {
    case FRAME_HELLO:
        if (memcmp(f->payload, MAGIC, MAGIC_SIZE) != 0 || get_u64(f->payload + 16) == 0)
            return false;
        handle_hello(l, f->payload);
        return true;
    case FRAME_PING:
        send_frame(l, FRAME_PONG, 0, f->payload, f->size);
        return true;
    case FRAME_PONG:
        return true;
    case FRAME_OPEN:
        return handle_open(l, f);
    default:
        return handle_of_stream(l, f);
    }
}

static void handle_all(struct link *l) {
    struct frame frame;
    for (;;) {
        enum parsed parsed = parser_next(&l->parser, &frame);
        if (parsed == PARSED_NOTHING)
            return;
        if (parsed == PARSED_FRAME && handle(l, &frame))
            continue;
        say("the host broke the protocol of the link; waiting for it to begin anew");
        forget_epoch(l);
        parser_desynchronise(&l->parser);
    }
}

static void read_some(struct link *l) {
    for (int i = 0; i < READS_PER_PUMP && l->readable && waiting(l) < OUT_HIGH; i++) {
        size_t room;
        uint8_t *at = parser_space(&l->parser, &room);
        ssize_t count = read(l->watch.fd, at, room);
        if (count > 0) {
            l->last_heard = loop_now();
            parser_fed(&l->parser, (size_t)count);
            handle_all(l);
        } else if (count < 0 && errno == EAGAIN) {
            l->readable = false;
        } else if (count == 0 || errno != EINTR) {
            end(l);
        }
    }
}

bool link_pump(struct link *l) {
    read_some(l);
    give_turns(l);
    flush(l);
    return (l->readable && waiting(l) < OUT_HIGH) || (l->first_turn != NULL && waiting(l) < OUT_LOW);
}

static void link_ready(struct watch *w, uint32_t events) {
    struct link *l = w->owner;
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        l->readable = true;
    if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
        l->writable = true;
}

bool link_attach(struct link *l, int fd) {
    loop_unwatch(l->loop, &l->watch);
    l->readable = l->writable = false;
    forget_epoch(l);
    parser_desynchronise(&l->parser);
    l->watch.fd = fd;
    return fd < 0 || loop_watch(l->loop, &l->watch, EPOLLIN | EPOLLOUT | EPOLLET);
}

void link_init(struct link *l, struct loop *loop) {
    *l = (struct link){
        .loop = loop,
        .watch = {.fd = -1, .ready = link_ready, .owner = l},
        .out_capacity = 2 * OUT_LOW,
        .last_heard = loop_now(),
    };
    l->out = must_alloc(l->out_capacity);
    parser_init(&l->parser);
    while (l->epoch == 0)
        if (getrandom(&l->epoch, sizeof l->epoch, GRND_NONBLOCK) < 0)
            l->epoch = ((uint64_t)loop_now() << 20 ^ (uint64_t)getpid()) | 1; /* it tells runs apart; it is no secret */
}

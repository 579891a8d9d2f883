#include "frame.h"

#include <stdlib.h>
#include <string.h>

#include "util.h"
#include "wire.h"

enum { BUFFER_SIZE = 2 * MAX_FRAME, START_SIZE = FRAME_HEADER - LENGTH_SIZE + MAGIC_SIZE };

static const uint8_t HELLO_START[START_SIZE + 1] = "\x01\0\0\0\0" MAGIC; /* all of a HELLO's first bytes but its length */

void parser_init(struct parser *p) {
    *p = (struct parser){.buffer = must_alloc(BUFFER_SIZE)};
}

void parser_free(struct parser *p) {
    free(p->buffer);
    free(p->parts);
}

static void drop_parts(struct parser *p) {
    free(p->parts);
    p->parts = NULL;
    p->parts_size = p->parts_stream = p->parts_cost = 0;
    p->parts_given = false;
}

void parser_desynchronise(struct parser *p) {
    drop_parts(p);
    p->synchronised = false;
}

uint8_t *parser_space(struct parser *p, size_t *room) {
    if (p->start == p->end) {
        p->start = p->end = 0;
    } else if (p->start >= MAX_FRAME) { /* so a move is paid for by a frame's worth of bytes that went through */
        memmove(p->buffer, p->buffer + p->start, p->end - p->start);
        p->end -= p->start;
        p->start = 0;
    }
    *room = BUFFER_SIZE - p->end;
    return p->buffer + p->end;
}

void parser_fed(struct parser *p, size_t count) { p->end += count; }

static bool payload_fits(uint8_t type, size_t size) {
    switch (type) {
    case FRAME_HELLO:
        return size >= HELLO_SIZE && size <= HELLO_MAX;
    case FRAME_PING:
    case FRAME_PONG:
    case FRAME_CREDIT:
        return size == 8;
    case FRAME_PART:
        return size >= 1 && size <= MAX_PAYLOAD;
    case FRAME_OPEN:
    case FRAME_MESSAGE:
        return size <= MAX_PAYLOAD;
    case FRAME_DATA:
        return size >= 2 && size <= 1 + MAX_DATA;
    case FRAME_EOF:
        return size == 1;
    case FRAME_CLOSE:
        return size <= MAX_REASON;
    default:
        return false;
    }
}

/* Drop what is before a HELLO; tells whether the beginning of one is there. */
static bool find_hello(struct parser *p) {
    for (;;) {
        const uint8_t *from = p->buffer + p->start;
        size_t size = p->end - p->start;
        const uint8_t *found = size < LENGTH_SIZE + START_SIZE
                                   ? NULL
                                   : memmem(from + LENGTH_SIZE, size - LENGTH_SIZE, HELLO_START, START_SIZE);
        if (found == NULL) {
            if (size >= LENGTH_SIZE + START_SIZE)
                p->start = p->end - (LENGTH_SIZE + START_SIZE - 1);
            return false;
        }
        p->start = (size_t)(found - p->buffer) - LENGTH_SIZE;
        size_t payload = (size_t)get_u32(p->buffer + p->start) + LENGTH_SIZE - FRAME_HEADER;
        if (payload_fits(FRAME_HELLO, payload))
            return true;
        p->start++;
    }
}

static enum parsed take(struct parser *p, struct frame *frame) {
    size_t size = p->end - p->start;
    const uint8_t *head = p->buffer + p->start;
    if (size < FRAME_HEADER)
        return PARSED_NOTHING;
    uint32_t length = get_u32(head);
    frame->type = head[LENGTH_SIZE];
    frame->stream = get_u32(head + LENGTH_SIZE + 1);
    bool of_link = frame->type <= FRAME_PONG;
    if (length < FRAME_HEADER - LENGTH_SIZE || length > MAX_FRAME - LENGTH_SIZE)
        return PARSED_VIOLATION;
    frame->cost = length + LENGTH_SIZE;
    frame->size = frame->cost - FRAME_HEADER;
    if (!payload_fits(frame->type, frame->size) || of_link != (frame->stream == 0))
        return PARSED_VIOLATION;
    if (size < frame->cost)
        return PARSED_NOTHING;
    frame->payload = head + FRAME_HEADER;
    p->start += frame->cost;
    return PARSED_FRAME;
}

/* Add a frame to the unfinished message; PARSED_FRAME once that is whole. */
static enum parsed join(struct parser *p, struct frame *frame) {
    bool joins = frame->type == FRAME_PART || frame->type == FRAME_OPEN || frame->type == FRAME_MESSAGE;
    if (!joins || (p->parts_stream != 0 && p->parts_stream != frame->stream))
        return PARSED_VIOLATION;
    if (p->parts_size + frame->size > MAX_MESSAGE)
        return PARSED_VIOLATION;
    p->parts = must_realloc(p->parts, p->parts_size + frame->size);
    memcpy(p->parts + p->parts_size, frame->payload, frame->size);
    p->parts_size += frame->size;
    p->parts_cost += frame->cost;
    p->parts_stream = frame->stream;
    if (frame->type == FRAME_PART)
        return PARSED_NOTHING;
    frame->payload = p->parts;
    frame->size = p->parts_size;
    frame->cost = p->parts_cost;
    p->parts_given = true;
    return PARSED_FRAME;
}

enum parsed parser_next(struct parser *p, struct frame *frame) {
    if (p->parts_given)
        drop_parts(p);
    if (!p->synchronised) {
        if (!find_hello(p))
            return PARSED_NOTHING;
        p->synchronised = true;
    }
    for (;;) {
        enum parsed parsed = take(p, frame);
        if (parsed != PARSED_FRAME)
            return parsed;
        if (frame->type != FRAME_PART && p->parts_stream == 0)
            return PARSED_FRAME;
        parsed = join(p, frame);
        if (parsed != PARSED_NOTHING)
            return parsed;
    }
}

uint8_t *frame_header(uint8_t *at, uint8_t type, uint32_t stream, size_t payload) {
    put_u32(at, (uint32_t)(payload + FRAME_HEADER - LENGTH_SIZE));
    at[LENGTH_SIZE] = type;
    put_u32(at + LENGTH_SIZE + 1, stream);
    return at + FRAME_HEADER;
}

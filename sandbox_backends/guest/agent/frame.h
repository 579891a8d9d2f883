/* The codec of the framed link, without I/O (docs/protocol/link.md, "Frames" and "HELLO"). */
#ifndef III_FRAME_H
#define III_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One frame, or one message of several. payload stays valid until the parser is used again; cost is what credit counts. */
struct frame {
    uint8_t type;
    uint32_t stream;
    const uint8_t *payload;
    size_t size;
    uint32_t cost;
};

struct parser {
    uint8_t *buffer;
    size_t start, end;
    bool synchronised;
    uint8_t *parts; /* an unfinished message */
    size_t parts_size;
    uint32_t parts_stream, parts_cost;
    bool parts_given; /* parts is the payload of the frame given last */
};

enum parsed { PARSED_NOTHING, PARSED_FRAME, PARSED_VIOLATION };

void parser_init(struct parser *p);
void parser_free(struct parser *p);

/* Where to put bytes; room is at least 1. Then say how many there were. */
uint8_t *parser_space(struct parser *p, size_t *room);
void parser_fed(struct parser *p, size_t count);

/* The next frame. Until synchronised, what comes before a HELLO is dropped. */
enum parsed parser_next(struct parser *p, struct frame *frame);

/* Look for a HELLO from here on. */
void parser_desynchronise(struct parser *p);

/* Write a frame's header; returns where its payload goes. */
uint8_t *frame_header(uint8_t *at, uint8_t type, uint32_t stream, size_t payload);

#endif

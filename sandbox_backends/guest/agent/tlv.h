/* Structured payloads: u16 tag | u32 length | value (docs/protocol/agent.md). */
#ifndef III_TLV_H
#define III_TLV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Reads fields one by one; set next and end first. */
struct fields {
    const uint8_t *next, *end;
    uint16_t tag;
    const uint8_t *value;
    uint32_t size;
};

enum field { FIELD_END, FIELD_THERE, FIELD_MALFORMED };

enum field fields_next(struct fields *f);

/* The value as a number between low and high; false if it is not one. */
bool field_number(const struct fields *f, uint64_t low, uint64_t high, uint64_t *number);

/* The value as a new string; NULL if it holds a NUL. */
char *field_text(const struct fields *f);

/* Builds a payload. */
struct payload {
    uint8_t *bytes;
    size_t size;
};

void payload_begin(struct payload *p, uint8_t kind);
void payload_number(struct payload *p, uint16_t tag, uint64_t number);
void payload_text(struct payload *p, uint16_t tag, const char *text);
void payload_free(struct payload *p);

#endif

#include "tlv.h"

#include <stdlib.h>
#include <string.h>

#include "util.h"
#include "wire.h"

enum { FIELD_HEADER = 6, NUMBER_SIZE = 8 };

enum field fields_next(struct fields *f) {
    size_t left = (size_t)(f->end - f->next);
    if (left == 0)
        return FIELD_END;
    if (left < FIELD_HEADER)
        return FIELD_MALFORMED;
    f->tag = get_u16(f->next);
    f->size = get_u32(f->next + 2);
    if (f->size > left - FIELD_HEADER)
        return FIELD_MALFORMED;
    f->value = f->next + FIELD_HEADER;
    f->next = f->value + f->size;
    return FIELD_THERE;
}

bool field_number(const struct fields *f, uint64_t low, uint64_t high, uint64_t *number) {
    if (f->size != NUMBER_SIZE)
        return false;
    *number = get_u64(f->value);
    return *number >= low && *number <= high;
}

char *field_text(const struct fields *f) {
    if (f->size > 0 && memchr(f->value, 0, f->size) != NULL)
        return NULL;
    char *text = must_alloc((size_t)f->size + 1);
    memcpy(text, f->value, f->size);
    return text;
}

static uint8_t *grow(struct payload *p, size_t more) {
    p->bytes = must_realloc(p->bytes, p->size + more);
    uint8_t *at = p->bytes + p->size;
    p->size += more;
    return at;
}

static uint8_t *field(struct payload *p, uint16_t tag, size_t size) {
    uint8_t *at = grow(p, FIELD_HEADER + size);
    put_u16(at, tag);
    put_u32(at + 2, (uint32_t)size);
    return at + FIELD_HEADER;
}

void payload_begin(struct payload *p, uint8_t kind) {
    *p = (struct payload){0};
    *grow(p, 1) = kind;
}

void payload_number(struct payload *p, uint16_t tag, uint64_t number) { put_u64(field(p, tag, NUMBER_SIZE), number); }

void payload_text(struct payload *p, uint16_t tag, const char *text) {
    size_t size = strlen(text);
    memcpy(field(p, tag, size), text, size);
}

void payload_free(struct payload *p) {
    free(p->bytes);
    *p = (struct payload){0};
}

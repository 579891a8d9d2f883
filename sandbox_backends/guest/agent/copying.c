/* COPY streams: OPEN of one; the rest is as with a process (docs/protocol/agent.md, "COPY"). */
#include <stdlib.h>

#include "agent.h"
#include "process.h"
#include "spawn.h"
#include "tlv.h"
#include "wire.h"

static bool parse_field(struct spawn_spec *spec, const struct fields *f) {
    uint64_t number;
    switch (f->tag) {
    case COPY_PATH:
        free(spec->path);
        return (spec->path = field_text(f)) != NULL && *spec->path != 0;
    case COPY_DIRECTION:
        return field_number(f, COPY_OUT, COPY_IN, &number) && (spec->copy = (enum copy)number, true);
    default:
        return spawn_parse_field(spec, f);
    }
}

bool copy_open(struct agent *a, struct stream *s, const uint8_t *bytes, size_t size) {
    struct spawn_spec spec;
    spawn_init(&spec);
    struct fields f = {.next = bytes, .end = bytes + size};
    enum field field;
    bool fine = true;
    while (fine && (field = fields_next(&f)) == FIELD_THERE)
        fine = parse_field(&spec, &f);
    fine = fine && field == FIELD_END && spec.path != NULL && spec.copy != COPY_NONE;
    spec.wants_stdin = spec.copy == COPY_IN;
    if (fine)
        process_start(a, s, &spec);
    spawn_free(&spec);
    return fine;
}

/* Starting one program: what docs/protocol/agent.md calls "Start". */
#ifndef III_SPAWN_H
#define III_SPAWN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "copy.h"
#include "tlv.h"

struct spawn_spec {
    char **argv, **env; /* NULL-terminated */
    size_t argc, envc;
    char *cwd;
    bool tty, wants_stdin;
    uint16_t rows, cols;
    bool has_uid, has_gid;
    uid_t uid;
    gid_t gid;
    gid_t *groups;
    size_t group_count;
    int64_t linger_ms;
    enum copy copy; /* instead of a program: the agent's own code, with path */
    char *path;
    bool unsupported; /* a critical field that is not known here */
    bool keeps_capabilities; /* root of a machine of its own: the usual ones of containers */
    int group;               /* as machine.h's, or -1 */
};

void spawn_init(struct spawn_spec *spec);
bool spawn_parse_field(struct spawn_spec *spec, const struct fields *f); /* false if it is malformed */

/* Read the fields of OPEN; false if they are malformed. Free the spec either way. */
bool spawn_parse(struct spawn_spec *spec, const uint8_t *bytes, size_t size);
void spawn_free(struct spawn_spec *spec);

/* What comes over the error pipe when a child could not start its program. */
struct spawn_failure {
    int error;
    char text[240];
};

struct spawned {
    pid_t pid;
    int failure;             /* read end: a spawn_failure, or end of file once the program runs */
    int in, out, err;        /* our ends, non-blocking; with a terminal in == out and err is -1. -1 where there is none */
};

/* False: *failure says why. */
bool spawn_start(const struct spawn_spec *spec, struct spawned *spawned, struct spawn_failure *failure);

#endif

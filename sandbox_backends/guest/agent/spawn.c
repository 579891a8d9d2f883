#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "child.h"
#include "pty.h"
#include "tlv.h"
#include "util.h"
#include "wire.h"

static bool append_text(char ***list, size_t *count, const struct fields *f) {
    char *text = field_text(f);
    if (text == NULL)
        return false;
    *list = must_realloc(*list, (*count + 2) * sizeof **list);
    (*list)[(*count)++] = text;
    (*list)[*count] = NULL;
    return true;
}

static bool append_group(struct spawn_spec *spec, uint64_t group) {
    spec->groups = must_realloc(spec->groups, (spec->group_count + 1) * sizeof *spec->groups);
    spec->groups[spec->group_count++] = (gid_t)group;
    return true;
}

static bool parse_id(const struct fields *f, bool *has, uint32_t *id) {
    uint64_t number;
    *has = field_number(f, 0, UINT32_MAX - 1, &number);
    *id = *has ? (uint32_t)number : 0;
    return *has;
}

static bool parse_size(const struct fields *f, uint16_t *size) {
    uint64_t number;
    if (!field_number(f, 1, UINT16_MAX, &number))
        return false;
    *size = (uint16_t)number;
    return true;
}

bool spawn_parse_field(struct spawn_spec *spec, const struct fields *f) {
    uint64_t number = 0;
    switch (f->tag) {
    case PROCESS_ARG:
        return append_text(&spec->argv, &spec->argc, f);
    case PROCESS_ENV:
        return append_text(&spec->env, &spec->envc, f);
    case PROCESS_CWD:
        free(spec->cwd);
        return (spec->cwd = field_text(f)) != NULL;
    case PROCESS_ROWS:
        return parse_size(f, &spec->rows);
    case PROCESS_COLS:
        return parse_size(f, &spec->cols);
    case PROCESS_UID:
        return parse_id(f, &spec->has_uid, &spec->uid);
    case PROCESS_GID:
        return parse_id(f, &spec->has_gid, &spec->gid);
    case PROCESS_GROUP:
        return field_number(f, 0, UINT32_MAX - 1, &number) && append_group(spec, number);
    case PROCESS_LINGER_MS:
        return field_number(f, 0, INT32_MAX, &number) && ((spec->linger_ms = (int64_t)number), true);
    case PROCESS_STDIN:
        return field_number(f, 0, 1, &number) && ((spec->wants_stdin = number), true);
    default:
        spec->unsupported = spec->unsupported || f->tag & TAG_CRITICAL;
        return true;
    }
}

void spawn_init(struct spawn_spec *spec) {
    static const struct spawn_spec EMPTY = {.group = -1};
    *spec = EMPTY;
    spec->env = must_alloc(sizeof *spec->env);
}

bool spawn_parse(struct spawn_spec *spec, const uint8_t *bytes, size_t size) {
    spawn_init(spec);
    struct fields f = {.next = bytes, .end = bytes + size};
    enum field field;
    while ((field = fields_next(&f)) == FIELD_THERE)
        if (!spawn_parse_field(spec, &f))
            return false;
    spec->tty = spec->rows > 0 && spec->cols > 0;
    if (spec->cwd == NULL) {
        spec->cwd = must_alloc(sizeof "/workspace");
        strcpy(spec->cwd, "/workspace");
    }
    return field == FIELD_END && spec->argc > 0 && (spec->rows > 0) == (spec->cols > 0);
}

static void free_list(char **list) {
    for (char **text = list; text != NULL && *text != NULL; text++)
        free(*text);
    free(list);
}

void spawn_free(struct spawn_spec *spec) {
    free_list(spec->argv);
    free_list(spec->env);
    free(spec->cwd);
    free(spec->path);
    free(spec->groups);
}

/* The descriptors that are being made: ours, and the child's. */
struct ends {
    int ours[3], theirs[3];
    int failure[2];
};

static void close_if_open(int fd) {
    if (fd >= 0)
        close(fd);
}

static void close_all(struct ends *e) {
    for (int i = 0; i < 3; i++) {
        if (i == 0 || e->theirs[i] != e->theirs[0])
            close_if_open(e->theirs[i]);
        if (i == 0 || e->ours[i] != e->ours[0])
            close_if_open(e->ours[i]);
    }
    close_if_open(e->failure[0]);
    close_if_open(e->failure[1]);
}

static bool make_pipe(int *read_end, int *write_end, const int *ours) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return false;
    *read_end = ends[0];
    *write_end = ends[1];
    return fcntl(*ours, F_SETFL, O_NONBLOCK) == 0;
}

static bool make_terminal(struct ends *e, const struct spawn_spec *spec) {
    int master, slave;
    if (!pty_open(&master, &slave, spec->rows, spec->cols, spec->has_uid ? spec->uid : (uid_t)-1))
        return false;
    e->ours[0] = e->ours[1] = master;
    e->theirs[0] = e->theirs[1] = e->theirs[2] = slave;
    return true;
}

static bool make_ends(struct ends *e, const struct spawn_spec *spec) {
    *e = (struct ends){{-1, -1, -1}, {-1, -1, -1}, {-1, -1}};
    if (!make_pipe(&e->failure[0], &e->failure[1], &e->failure[0]))
        return false;
    if (spec->tty)
        return make_terminal(e, spec);
    if (spec->wants_stdin) {
        if (!make_pipe(&e->theirs[0], &e->ours[0], &e->ours[0]))
            return false;
    } else if ((e->theirs[0] = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0) {
        return false;
    }
    return make_pipe(&e->ours[1], &e->theirs[1], &e->ours[1]) && make_pipe(&e->ours[2], &e->theirs[2], &e->ours[2]);
}

bool spawn_start(const struct spawn_spec *spec, struct spawned *spawned, struct spawn_failure *failure) {
    struct ends e;
    const char *what = spec->tty ? "cannot make a terminal" : "cannot make pipes";
    if (make_ends(&e, spec)) {
        what = "cannot fork";
        pid_t pid = fork();
        if (pid == 0)
            child_run(spec, e.theirs, e.failure[1]);
        if (pid > 0) {
            *spawned = (struct spawned){pid, e.failure[0], e.ours[0], e.ours[1], e.ours[2]};
            e.ours[0] = e.ours[1] = e.ours[2] = e.failure[0] = -1;
            close_all(&e);
            return true;
        }
    }
    failure->error = errno;
    snprintf(failure->text, sizeof failure->text, "%s: %s", what, strerror(failure->error));
    close_all(&e);
    return false;
}

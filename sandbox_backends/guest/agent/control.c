/* The control stream: configure, READY, POWER_OFF (docs/protocol/agent.md, "CONTROL"). */
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"
#include "machine.h"
#include "util.h"

static void set_hostname(const struct fields *f) {
    char *name = field_text(f);
    if (name != NULL && sethostname(name, strlen(name)) < 0)
        say("cannot set the host name: %s", strerror(errno));
    free(name);
}

/* Time and chance belong to a machine; elsewhere they are the host's own. False if the field is malformed. */
static bool restore_field(const struct agent *a, const struct fields *f) {
    uint64_t now;
    if (f->tag == CONTROL_CLOCK_NS) {
        if (!field_number(f, 0, INT64_MAX, &now))
            return false;
        if (a->is_machine)
            machine_set_clock(now);
    } else if (f->tag == CONTROL_ENTROPY) {
        if (f->size == 0 || f->size > MAX_ENTROPY)
            return false;
        if (a->is_machine)
            machine_add_entropy(f->value, f->size);
    }
    return true;
}

/* One field of the configuration; listen errors go into ready. False if it is malformed. */
static bool configure_field(struct agent *a, const struct fields *f, struct payload *ready) {
    uint64_t number;
    switch (f->tag) {
    case CONTROL_PORT: {
        if (!field_number(f, 1, UINT16_MAX, &number))
            return false;
        int error = tunnel_listen(a, (uint16_t)number, AF_INET);
        if (error != 0) {
            char text[160];
            snprintf(text, sizeof text, "127.0.0.1:%u: %s", (unsigned)number, strerror(error));
            payload_text(ready, TAG_LISTEN_ERROR, text);
        }
        tunnel_listen(a, (uint16_t)number, AF_INET6); /* a machine may be without */
        return true;
    }
    case CONTROL_HOSTNAME:
        set_hostname(f);
        return true;
    case CONTROL_DEAD_MAN_MS:
        return field_number(f, 0, INT32_MAX, &number) && (power_set_dead_man(a, (int64_t)number), true);
    default:
        return restore_field(a, f);
    }
}

static bool control_data(struct stream *s, uint8_t channel, const uint8_t *bytes, size_t size) {
    (void)s, (void)channel, (void)bytes, (void)size;
    return false;
}

static bool control_eof(struct stream *s, uint8_t channel) {
    (void)s, (void)channel;
    return false;
}

static void send_stats(struct stream *s, uint64_t token) {
    struct payload stats;
    payload_begin(&stats, MESSAGE_STATS);
    payload_number(&stats, TAG_TOKEN, token);
    stats_add(s->owner, &stats);
    stream_send(s, &stats);
}

static bool control_message(struct stream *s, const uint8_t *bytes, size_t size) {
    uint64_t grace = 0, token = 0;
    if (size == 0)
        return false;
    struct fields f = {.next = bytes + 1, .end = bytes + size};
    enum field field;
    while ((field = fields_next(&f)) == FIELD_THERE)
        if ((bytes[0] == MESSAGE_RESUME && !restore_field(s->owner, &f)) ||
            (f.tag == TAG_TOKEN && !field_number(&f, 0, UINT64_MAX, &token)) ||
            (f.tag == TAG_GRACE_MS && !field_number(&f, 0, INT32_MAX, &grace)))
            return false;
    if (field == FIELD_MALFORMED)
        return false;
    if (bytes[0] == MESSAGE_POWER_OFF)
        power_off(s->owner, (int64_t)grace, EXIT_POWERED_OFF);
    if (bytes[0] == MESSAGE_GIVE_STATS && stream_may_send(s))
        send_stats(s, token);
    return true;
}

static void control_credit(struct stream *s) { tunnel_announce(s->owner); }

static void control_closed(struct stream *s) { stream_close(s, ""); }

static void control_gone(struct stream *s) {
    struct agent *a = s->owner;
    a->control = NULL;
    if (s->close_received)
        tunnel_listeners_close(a, true);
    else
        tunnel_listeners_keep(a);
}

static const struct stream_ops CONTROL_OPS = {
    .data = control_data,
    .eof = control_eof,
    .message = control_message,
    .credit = control_credit,
    .closed = control_closed,
    .gone = control_gone,
};

bool control_open(struct agent *a, struct stream *s, const uint8_t *bytes, size_t size) {
    if (a->control != NULL) {
        stream_close(s, "there is a control stream already");
        return true;
    }
    a->control = s;
    s->ops = &CONTROL_OPS;
    s->owner = a;
    struct payload ready;
    payload_begin(&ready, MESSAGE_READY);
    payload_number(&ready, TAG_VERSION, AGENT_VERSION);
    payload_number(&ready, TAG_FEATURES, FEATURE_RESUME | FEATURE_COPY | FEATURE_STATS | FEATURE_DIAL | FEATURE_ADOPT);
    payload_number(&ready, TAG_PID, (uint64_t)getpid());
    struct fields f = {.next = bytes, .end = bytes + size};
    enum field field;
    while ((field = fields_next(&f)) == FIELD_THERE) {
        if (f.tag & TAG_CRITICAL) {
            payload_free(&ready);
            stream_close(s, "the host asks for what this agent does not know");
            return true;
        }
        if (!configure_field(a, &f, &ready))
            break;
    }
    if (field != FIELD_END) {
        payload_free(&ready);
        return false;
    }
    stream_send(s, &ready);
    tunnel_listeners_close(a, false);
    tunnel_announce(a);
    return true;
}

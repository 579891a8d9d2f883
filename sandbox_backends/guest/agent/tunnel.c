/* Connections from inside the sandbox to the engine (docs/protocol/agent.md, "TUNNEL"). */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"
#include "flow.h"
#include "util.h"

enum {
    CHANNEL = 0,
    BACKLOG = 1024, /* where it overflows, connections are reset or wait for a retransmission */
    MAX_UNCLAIMED = 64,
    CLAIM_MS = 30000,
    LAST_WORDS_MS = 5000, /* how long what the host said before CLOSE may take to be written */
};

struct listener {
    struct listener *next;
    struct agent *agent;
    struct watch watch;
    uint16_t port;
    int family;
    bool wanted; /* by the configuration in force */
};

struct tunnel {
    struct tunnel *next;
    struct agent *agent;
    struct stream *stream; /* NULL until claimed, and once gone */
    uint64_t id;   /* 0: the host of now has not been told */
    uint16_t port; /* where it came in */
    bool claimed, connecting, over;
    uint16_t other_port; /* where to try ::1, if the connection that is on its way is refused */
    struct watch watch;
    struct source source;
    struct sink sink;
    struct timer timer; /* to be claimed, or for last words */
};

/* --- the connection --- */

static void end_tunnel(struct tunnel *t) {
    if (t->over)
        return;
    t->over = true;
    source_stop(&t->source);
    sink_stop(&t->sink);
    t->sink.stream = NULL;
    loop_unwatch_and_close(&t->agent->loop, &t->watch);
    loop_stop_timer(&t->agent->loop, &t->timer);
    if (t->stream != NULL)
        t->stream->owner = NULL;
    for (struct tunnel **at = &t->agent->tunnels; *at != NULL; at = &(*at)->next)
        if (*at == t) {
            *at = t->next;
            break;
        }
    if (!t->claimed)
        t->agent->unclaimed--;
    loop_free_later(&t->agent->loop, t);
    tunnel_announce(t->agent);
}

/* End it and tell the host. */
static void close_tunnel(struct tunnel *t, const char *reason) {
    struct stream *stream = t->stream;
    end_tunnel(t);
    if (stream != NULL)
        stream_close(stream, reason);
}

static void close_when_both_ended(struct tunnel *t) {
    if (t->source.ended && t->sink.ended)
        close_tunnel(t, "");
}

static void source_over(struct source *source, int error) {
    struct tunnel *t = source->owner;
    if (error != 0) {
        close_tunnel(t, strerror(error));
        return;
    }
    if (t->stream != NULL)
        stream_send_eof(t->stream, CHANNEL);
    close_when_both_ended(t);
}

static void sink_over(struct sink *sink, int error) {
    struct tunnel *t = sink->owner;
    if (error != 0 || t->stream == NULL) { /* without a stream these were the last words */
        close_tunnel(t, error ? strerror(error) : "");
        return;
    }
    shutdown(t->watch.fd, SHUT_WR);
    close_when_both_ended(t);
}

static void send_connected(struct tunnel *t) {
    struct payload message;
    t->connecting = false;
    payload_begin(&message, MESSAGE_CONNECTED);
    stream_send(t->stream, &message);
}

/* False if that fails too. */
static bool try_the_other_address(struct tunnel *t) {
    int fd = dial_connect(t->other_port, AF_INET6, &t->connecting);
    t->other_port = 0;
    if (fd < 0)
        return false;
    loop_unwatch_and_close(&t->agent->loop, &t->watch);
    t->watch.fd = t->source.fd = t->sink.fd = fd;
    if (!t->connecting)
        send_connected(t);
    return loop_watch(&t->agent->loop, &t->watch, EPOLLIN | EPOLLRDHUP | EPOLLOUT | EPOLLET);
}

/* Whether the connection is there by now; if it failed, that is its end. */
static bool is_connected(struct tunnel *t, uint32_t events) {
    int error = 0;
    socklen_t size = sizeof error;
    if (!(events & (EPOLLOUT | EPOLLHUP | EPOLLERR)))
        return false;
    getsockopt(t->watch.fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error == ECONNREFUSED && t->other_port != 0 && try_the_other_address(t))
        return false;
    if (error != 0)
        close_tunnel(t, strerror(error));
    else
        send_connected(t);
    return !t->over;
}

static void connection_ready(struct watch *w, uint32_t events) {
    struct tunnel *t = w->owner;
    if (t->connecting && t->stream != NULL && !is_connected(t, events))
        return;
    if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
        sink_flush(&t->sink);
    if (!t->over && events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        source_ready(&t->source);
}

static void time_is_up(struct timer *timer) { close_tunnel(timer->owner, ""); }

/* --- what the host says; the owner is NULL once the connection has ended --- */

static bool tunnel_data(struct stream *s, uint8_t channel, const uint8_t *bytes, size_t size) {
    struct tunnel *t = s->owner;
    if (t != NULL && channel == CHANNEL)
        sink_write(&t->sink, bytes, size);
    return channel == CHANNEL;
}

static bool tunnel_eof(struct stream *s, uint8_t channel) {
    struct tunnel *t = s->owner;
    if (t != NULL && channel == CHANNEL)
        sink_eof(&t->sink);
    return channel == CHANNEL;
}

static bool tunnel_message(struct stream *s, const uint8_t *bytes, size_t size) {
    (void)s, (void)bytes, (void)size; /* none is defined */
    return true;
}

static void tunnel_gone(struct stream *s) {
    struct tunnel *t = s->owner;
    if (t == NULL)
        return;
    t->stream = NULL;
    end_tunnel(t);
}

static void tunnel_closed(struct stream *s) {
    struct tunnel *t = s->owner;
    if (t != NULL && !sink_empty(&t->sink)) {
        source_stop(&t->source);
        t->stream = t->sink.stream = NULL;
        s->owner = NULL;
        t->timer.fire = time_is_up;
        loop_start_timer(&t->agent->loop, &t->timer, LAST_WORDS_MS);
        sink_eof(&t->sink);
    } else if (t != NULL) {
        end_tunnel(t);
    }
    stream_close(s, "");
}

static const struct stream_ops TUNNEL_OPS = {
    .data = tunnel_data,
    .eof = tunnel_eof,
    .message = tunnel_message,
    .closed = tunnel_closed,
    .gone = tunnel_gone,
};

static struct tunnel *find_unclaimed(const struct agent *a, uint64_t id) {
    for (struct tunnel *t = a->tunnels; t != NULL; t = t->next)
        if (t->id == id && !t->claimed) /* the host never says 0 */
            return t;
    return NULL;
}

/* From now on the stream is the connection's. */
static void join(struct tunnel *t, struct stream *s) {
    t->claimed = true;
    t->stream = s;
    s->ops = &TUNNEL_OPS;
    s->owner = t;
    source_start(&t->source, s, CHANNEL, t->watch.fd);
    sink_start(&t->sink, s, t->watch.fd);
    if (!loop_watch(&t->agent->loop, &t->watch, EPOLLIN | EPOLLRDHUP | EPOLLOUT | EPOLLET))
        close_tunnel(t, strerror(errno));
}

bool tunnel_open(struct agent *a, struct stream *s, const uint8_t *bytes, size_t size) {
    struct fields f = {.next = bytes, .end = bytes + size};
    enum field field;
    uint64_t id = 0;
    while ((field = fields_next(&f)) == FIELD_THERE)
        if (f.tag == TAG_CONNECTION_ID && !field_number(&f, 1, UINT64_MAX, &id))
            return false;
    if (field == FIELD_MALFORMED || id == 0)
        return false;
    struct tunnel *t = find_unclaimed(a, id);
    if (t == NULL) {
        stream_close(s, "the connection is gone");
        return true;
    }
    loop_stop_timer(&a->loop, &t->timer);
    a->unclaimed--;
    join(t, s);
    tunnel_announce(a);
    return true;
}

static struct tunnel *new_tunnel(struct agent *a, int fd) {
    struct tunnel *t = must_alloc(sizeof *t);
    *t = (struct tunnel){.next = a->tunnels, .agent = a};
    t->watch = (struct watch){.fd = fd, .ready = connection_ready, .owner = t};
    t->source = (struct source){.end = source_over, .owner = t};
    t->sink = (struct sink){.end = sink_over, .owner = t};
    t->timer = (struct timer){.fire = time_is_up, .owner = t};
    a->tunnels = t;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    return t;
}

void tunnel_adopt(struct agent *a, struct stream *s, int fd, bool connecting, uint16_t other_port) {
    struct tunnel *t = new_tunnel(a, fd);
    t->connecting = connecting;
    t->other_port = other_port;
    join(t, s);
    if (!t->over && !connecting)
        send_connected(t);
}

/* --- listening --- */

static void announce(struct agent *a, struct tunnel *t) {
    t->id = ++a->last_connection_id;
    loop_start_timer(&a->loop, &t->timer, CLAIM_MS);
    struct payload message;
    payload_begin(&message, MESSAGE_CONNECTION);
    payload_number(&message, TAG_CONNECTION_ID, t->id);
    payload_number(&message, TAG_PORT, t->port);
    stream_send(a->control, &message);
}

static bool may_announce(const struct agent *a) { return a->control != NULL && stream_may_send(a->control); }

static void accepted(struct listener *listener, int fd) {
    struct tunnel *t = new_tunnel(listener->agent, fd);
    t->port = listener->port;
    listener->agent->unclaimed++;
    announce(listener->agent, t);
}

static void accept_some(struct watch *w, uint32_t events) {
    struct listener *listener = w->owner;
    (void)events;
    while (listener->agent->unclaimed < MAX_UNCLAIMED && may_announce(listener->agent)) {
        int fd = accept4(w->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0)
            accepted(listener, fd);
        else if (errno != EINTR && errno != ECONNABORTED)
            return; /* EAGAIN, or no descriptors are left: the next connection to end makes room */
    }
}

void tunnel_announce(struct agent *a) {
    for (struct tunnel *t = a->tunnels; t != NULL; t = t->next)
        if (!t->claimed && t->id == 0 && may_announce(a))
            announce(a, t);
    for (struct listener *listener = a->listeners; listener != NULL; listener = listener->next)
        accept_some(&listener->watch, 0);
}

static int listen_on(uint16_t port, int family) {
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    struct sockaddr_in v4 = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &(int){1}, sizeof(int));
    const struct sockaddr *address = family == AF_INET6 ? (struct sockaddr *)&v6 : (struct sockaddr *)&v4;
    if (bind(fd, address, family == AF_INET6 ? sizeof v6 : sizeof v4) < 0 || listen(fd, BACKLOG) < 0) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

int tunnel_listen(struct agent *a, uint16_t port, int family) {
    struct listener *listener;
    for (listener = a->listeners; listener != NULL; listener = listener->next)
        if (listener->port == port && listener->family == family && !listener->wanted) {
            listener->wanted = true;
            return 0;
        }
    int fd = listen_on(port, family);
    if (fd < 0)
        return errno;
    listener = must_alloc(sizeof *listener);
    *listener = (struct listener){.next = a->listeners, .agent = a, .port = port, .family = family, .wanted = true};
    listener->watch = (struct watch){.fd = fd, .ready = accept_some, .owner = listener};
    if (!loop_watch(&a->loop, &listener->watch, EPOLLIN | EPOLLET)) {
        int error = errno;
        close(fd);
        free(listener);
        return error;
    }
    a->listeners = listener;
    return 0;
}

void tunnel_listeners_keep(struct agent *a) {
    for (struct listener *listener = a->listeners; listener != NULL; listener = listener->next)
        listener->wanted = false;
    for (struct tunnel *t = a->tunnels; t != NULL; t = t->next)
        if (!t->claimed)
            t->id = 0;
}

static bool is_listened_on(const struct agent *a, uint16_t port) {
    for (const struct listener *listener = a->listeners; listener != NULL; listener = listener->next)
        if (listener->port == port)
            return true;
    return false;
}

void tunnel_listeners_close(struct agent *a, bool all) {
    for (struct listener **at = &a->listeners; *at != NULL;) {
        struct listener *listener = *at;
        if (listener->wanted && !all) {
            at = &listener->next;
            continue;
        }
        *at = listener->next;
        loop_unwatch_and_close(&a->loop, &listener->watch);
        loop_free_later(&a->loop, listener);
    }
    for (struct tunnel *t = a->tunnels, *next; t != NULL; t = next) {
        next = t->next;
        if (!t->claimed && !is_listened_on(a, t->port))
            end_tunnel(t);
    }
}

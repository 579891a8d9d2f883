/* Unit tests of the parts that need no sandbox: frames, fields, timers, flow. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "flow.h"
#include "frame.h"
#include "link.h"
#include "spawn.h"
#include "test_cmdline.h"
#include "tlv.h"
#include "util.h"
#include "wire.h"

/* --- frames --- */

struct bytes {
    uint8_t at[1 << 18];
    size_t size;
};

static void add_frame(struct bytes *b, uint8_t type, uint32_t stream, const void *payload, size_t size) {
    memcpy(frame_header(b->at + b->size, type, stream, size), payload, size);
    b->size += FRAME_HEADER + size;
}

static void add_hello(struct bytes *b) {
    uint8_t hello[HELLO_SIZE] = MAGIC;
    put_u64(hello + 16, 1);
    add_frame(b, FRAME_HELLO, 0, hello, sizeof hello);
}

static void feed(struct parser *p, const uint8_t *bytes, size_t size) {
    while (size > 0) {
        size_t room;
        uint8_t *at = parser_space(p, &room);
        room = room < size ? room : size;
        memcpy(at, bytes, room);
        parser_fed(p, room);
        bytes += room;
        size -= room;
    }
}

static void test_frames_in_pieces(void) {
    static struct bytes b;
    b.size = 0;
    memset(b.at, 0xf1, 50); /* what is before a HELLO is skipped, also what looks like its beginning */
    b.size = 50;
    memcpy(b.at + b.size, MAGIC, MAGIC_SIZE);
    b.size += MAGIC_SIZE;
    add_hello(&b);
    add_frame(&b, FRAME_DATA, 7, "\1abc", 4);
    add_frame(&b, FRAME_PART, 9, "one ", 4);
    add_frame(&b, FRAME_PART, 9, "two ", 4);
    add_frame(&b, FRAME_OPEN, 9, "three", 5);
    add_frame(&b, FRAME_MESSAGE, 9, "", 0);
    for (size_t piece = 1; piece < 40; piece++) {
        struct parser p;
        struct frame f;
        int seen = 0;
        parser_init(&p);
        for (size_t at = 0; at < b.size; at += piece) {
            feed(&p, b.at + at, at + piece < b.size ? piece : b.size - at);
            while (parser_next(&p, &f) == PARSED_FRAME) {
                switch (seen++) {
                case 0:
                    CHECK(f.type == FRAME_HELLO && f.size == HELLO_SIZE);
                    break;
                case 1:
                    CHECK(f.type == FRAME_DATA && f.stream == 7 && f.cost == 13 && memcmp(f.payload, "\1abc", 4) == 0);
                    break;
                case 2:
                    CHECK(f.type == FRAME_OPEN && f.size == 13 && f.cost == 13 + 3 * FRAME_HEADER);
                    CHECK(memcmp(f.payload, "one two three", 13) == 0);
                    break;
                default:
                    CHECK(f.type == FRAME_MESSAGE && f.size == 0);
                }
            }
        }
        CHECK(seen == 4);
        CHECK(parser_next(&p, &f) == PARSED_NOTHING);
        parser_free(&p);
    }
}

static void test_violation_and_a_new_beginning(void) {
    static struct bytes b;
    struct parser p;
    struct frame f;
    b.size = 0;
    add_hello(&b);
    memset(b.at + b.size, 0, 100);
    b.size += 100;
    add_hello(&b);
    parser_init(&p);
    feed(&p, b.at, b.size);
    CHECK(parser_next(&p, &f) == PARSED_FRAME);
    CHECK(parser_next(&p, &f) == PARSED_VIOLATION);
    parser_desynchronise(&p);
    CHECK(parser_next(&p, &f) == PARSED_FRAME && f.type == FRAME_HELLO);
    CHECK(parser_next(&p, &f) == PARSED_NOTHING);
    parser_free(&p);
}

static void test_largest_frames_go_through(void) {
    static struct bytes b;
    static uint8_t payload[MAX_PAYLOAD];
    struct parser p;
    struct frame f;
    b.size = 0;
    add_hello(&b);
    parser_init(&p);
    feed(&p, b.at, b.size);
    CHECK(parser_next(&p, &f) == PARSED_FRAME);
    for (int i = 0; i < 300; i++) {
        memset(payload, i, sizeof payload);
        b.size = 0;
        add_frame(&b, FRAME_MESSAGE, 1, payload, sizeof payload);
        CHECK(b.size == MAX_FRAME);
        feed(&p, b.at, 1 + (size_t)i * 100);
        CHECK(parser_next(&p, &f) == PARSED_NOTHING);
        feed(&p, b.at + 1 + i * 100, b.size - 1 - (size_t)i * 100);
        CHECK(parser_next(&p, &f) == PARSED_FRAME && f.size == sizeof payload && f.payload[0] == (uint8_t)i);
        CHECK(f.payload[sizeof payload - 1] == (uint8_t)i);
    }
    parser_free(&p);
}

/* --- fields --- */

static void test_fields(void) {
    struct payload built;
    payload_begin(&built, 42);
    payload_number(&built, 5, UINT64_MAX - 1);
    payload_text(&built, 6, "text");
    CHECK(built.bytes[0] == 42);
    struct fields f = {.next = built.bytes + 1, .end = built.bytes + built.size};
    uint64_t number;
    CHECK(fields_next(&f) == FIELD_THERE && f.tag == 5 && field_number(&f, 0, UINT64_MAX, &number));
    CHECK(number == UINT64_MAX - 1 && !field_number(&f, 0, 5, &number));
    CHECK(fields_next(&f) == FIELD_THERE && f.tag == 6 && !field_number(&f, 0, UINT64_MAX, &number));
    char *text = field_text(&f);
    CHECK(strcmp(text, "text") == 0);
    free(text);
    CHECK(fields_next(&f) == FIELD_END);
    for (size_t cut = 1; cut < built.size - 1; cut++) {
        struct fields g = {.next = built.bytes + 1, .end = built.bytes + built.size - cut};
        enum field field;
        while ((field = fields_next(&g)) == FIELD_THERE)
            ;
        CHECK(field == (built.size - cut == 1 + 6 + 8 ? FIELD_END : FIELD_MALFORMED));
    }
    payload_free(&built);
}

/* --- timers --- */

static int fired[4], fire_count;

static void fire(struct timer *t) { fired[fire_count++] = *(int *)t->owner; }

static void test_timers_fire_in_order_and_can_be_stopped(void) {
    struct loop loop;
    int names[4] = {0, 1, 2, 3};
    struct timer timers[4] = {{0}};
    loop_init(&loop);
    for (int i = 0; i < 4; i++) {
        timers[i].fire = fire;
        timers[i].owner = &names[i];
        loop_start_timer(&loop, &timers[i], 20 - 5 * i);
    }
    loop_stop_timer(&loop, &timers[2]);
    loop_stop_timer(&loop, &timers[2]);
    loop_start_timer(&loop, &timers[3], 30); /* later than it was to be */
    while (fire_count < 3)
        loop_step(&loop, true);
    CHECK(fired[0] == 1 && fired[1] == 0 && fired[2] == 3);
    CHECK(loop.timers == NULL);
    close(loop.epoll);
    free(loop.garbage);
}

/* --- flow: a sink gives back all bytes in order, whatever the pace --- */

static int sink_ended, sink_error;

static void sink_over(struct sink *s, int error) {
    (void)s;
    sink_ended++;
    sink_error = error;
}

static void test_sink_keeps_order_across_its_ring(void) {
    int ends[2];
    struct sink sink = {.end = sink_over};
    CHECK(pipe2(ends, O_NONBLOCK) == 0);
    CHECK(fcntl(ends[1], F_SETPIPE_SZ, 4096) == 4096);
    sink_start(&sink, NULL, ends[1]);
    uint32_t written = 0, read_count = 0;
    uint8_t piece[5000];
    for (int round = 0; round < 2000; round++) {
        size_t size = (size_t)(round * 37 % (int)sizeof piece);
        if (sink.size + size <= DATA_WINDOW) {
            for (size_t i = 0; i < size; i++)
                piece[i] = (uint8_t)(written++ * 31);
            sink_write(&sink, piece, size);
        }
        ssize_t count = read(ends[0], piece, 1 + (size_t)(round * 91 % 4000));
        for (ssize_t i = 0; i < count; i++)
            CHECK(piece[i] == (uint8_t)(read_count++ * 31));
        sink_flush(&sink);
    }
    sink_eof(&sink);
    while (read_count < written) {
        ssize_t count = read(ends[0], piece, sizeof piece);
        for (ssize_t i = 0; i < count; i++)
            CHECK(piece[i] == (uint8_t)(read_count++ * 31));
        sink_flush(&sink);
    }
    CHECK(sink_ended == 1 && sink_error == 0 && sink.bytes == NULL);
    close(ends[0]);
    struct sink broken = {.end = sink_over};
    sink_start(&broken, NULL, ends[1]);
    sink_write(&broken, piece, 10);
    CHECK(sink_ended == 2 && sink_error == EPIPE);
    sink_write(&broken, piece, 10);
    CHECK(sink_ended == 2);
    close(ends[1]);
}

/* --- spawning --- */

static void test_spawn_spec(void) {
    struct payload built;
    struct spawn_spec spec;
    payload_begin(&built, KIND_PROCESS);
    payload_text(&built, PROCESS_ARG, "a");
    payload_text(&built, PROCESS_ARG, "b");
    payload_text(&built, PROCESS_ENV, "K=v");
    payload_number(&built, PROCESS_GROUP, 5);
    payload_number(&built, PROCESS_UID, 6);
    payload_text(&built, PROCESS_CWD, "/x");
    payload_text(&built, PROCESS_CWD, "/y");
    payload_number(&built, 0x4242, 1);
    CHECK(spawn_parse(&spec, built.bytes + 1, built.size - 1));
    CHECK(spec.argc == 2 && strcmp(spec.argv[1], "b") == 0 && spec.argv[2] == NULL);
    CHECK(spec.envc == 1 && strcmp(spec.env[0], "K=v") == 0 && spec.env[1] == NULL);
    CHECK(spec.group_count == 1 && spec.groups[0] == 5 && spec.has_uid && spec.uid == 6 && !spec.has_gid);
    CHECK(strcmp(spec.cwd, "/y") == 0 && !spec.tty && !spec.unsupported);
    spawn_free(&spec);
    payload_number(&built, 0x8242, 1);
    CHECK(spawn_parse(&spec, built.bytes + 1, built.size - 1) && spec.unsupported);
    spawn_free(&spec);
    payload_free(&built);
}

/* --- a link that outlives its connections: a port that says end of file and goes on, another descriptor --- */

static void on_link_ended(struct link *l) { ++*(int *)l->owner; }

static void say_hello(int fd, uint64_t epoch) {
    uint8_t hello[FRAME_HEADER + HELLO_SIZE] = {0};
    uint8_t *at = frame_header(hello, FRAME_HELLO, 0, HELLO_SIZE);
    memcpy(at, MAGIC, MAGIC_SIZE);
    put_u64(at + 16, epoch);
    put_u16(at + 32, LINK_VERSION);
    CHECK(write(fd, hello, sizeof hello) == sizeof hello);
}

static void pump(struct loop *loop, struct link *l) {
    for (int i = 0; i < 4; i++) {
        loop_step(loop, false);
        while (link_pump(l))
            ;
    }
}

static uint64_t answered_epoch(int fd) {
    uint8_t answer[4096];
    ssize_t count = read(fd, answer, sizeof answer);
    return count == FRAME_HEADER + HELLO_SIZE ? get_u64(answer + FRAME_HEADER + 24) : 0;
}

static void test_link_outlives_connections(void) {
    struct loop loop;
    static struct link l;
    int first[2], second[2], ended = 0;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, first) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, second) == 0);
    loop_init(&loop);
    link_init(&l, &loop);
    l.ended = on_link_ended;
    l.owner = &ended;
    pump(&loop, &l); /* nobody there yet */
    CHECK(link_attach(&l, first[0]));
    say_hello(first[1], 5);
    pump(&loop, &l);
    CHECK(answered_epoch(first[1]) == 5 && ended == 0);
    CHECK(write(first[1], "\xff\0", 2) == 2); /* a frame's beginning, and the end */
    shutdown(first[1], SHUT_WR);
    pump(&loop, &l);
    CHECK(ended == 1 && link_idle(&l) && l.peer_epoch == 0);
    CHECK(link_attach(&l, second[0]));
    say_hello(second[1], 6);
    pump(&loop, &l);
    CHECK(answered_epoch(second[1]) == 6 && ended == 1);
    int file = open("/proc/self/status", O_RDONLY);
    CHECK(!link_attach(&l, file)); /* epoll takes no files */
    CHECK(link_attach(&l, -1));
    close(file);
    for (int i = 0; i < 2; i++) {
        close(first[i]);
        close(second[i]);
    }
    close(loop.epoll);
    free(loop.garbage);
    free(l.out);
    parser_free(&l.parser);
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    test_frames_in_pieces();
    test_violation_and_a_new_beginning();
    test_largest_frames_go_through();
    test_fields();
    test_timers_fire_in_order_and_can_be_stopped();
    test_sink_keeps_order_across_its_ring();
    test_spawn_spec();
    test_cmdline();
    test_link_outlives_connections();
    puts("ok");
    return 0;
}

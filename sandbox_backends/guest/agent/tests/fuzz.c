/* A deterministic mutation fuzzer: `fuzz SEED ROUNDS`. Built with sanitizers, which end it at the first mistake. It checks
 *  - that a parser gives the same frames however the bytes are cut into pieces,
 *  - that field and spawn parsing stay within their bytes,
 *  - that a whole link survives what a host may send, and never holds more than it granted. */
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "flow.h"
#include "frame.h"
#include "link.h"
#include "spawn.h"
#include "tlv.h"
#include "util.h"
#include "wire.h"

enum { MAX_INPUT = 1 << 16 };

static uint64_t state;

static uint32_t random_below(uint32_t bound) { /* xorshift64* */
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (uint32_t)((state * 2685821657736338717ULL) >> 33) % bound;
}

static uint8_t input[MAX_INPUT];
static size_t input_size;

static void add(uint8_t type, uint32_t stream, const void *payload, size_t size) {
    if (input_size + FRAME_HEADER + size > MAX_INPUT / 2)
        return;
    uint8_t *at = frame_header(input + input_size, type, stream, size);
    if (size > 0)
        memcpy(at, payload, size);
    input_size += FRAME_HEADER + size;
}

static void add_hello(void) {
    uint8_t hello[HELLO_SIZE] = MAGIC;
    put_u64(hello + 16, 1 + random_below(3));
    put_u16(hello + 32, random_below(20) ? LINK_VERSION : 2);
    put_u32(hello + 52, 32768 + random_below(100000));
    put_u32(hello + 56, 1024 + random_below(100000));
    add(FRAME_HELLO, 0, hello, sizeof hello);
}

/* A conversation as a host might have it. */
static void make_conversation(void) {
    static uint8_t bytes[MAX_DATA + 1];
    uint32_t last = 0;
    input_size = 0;
    add_hello();
    for (uint32_t count = random_below(40); count > 0; count--) {
        uint32_t stream = last ? 1 + random_below(last) : 1;
        for (int i = 0; i < 64; i++)
            bytes[i] = (uint8_t)random_below(256);
        bytes[0] = (uint8_t)random_below(3);
        switch (random_below(12)) {
        case 0:
            add_hello();
            last = 0;
            break;
        case 1:
            add(FRAME_PING, 0, bytes, 8);
            break;
        case 2:
            add(FRAME_PART, last + 1, bytes, 1 + random_below(60));
            add(FRAME_OPEN, ++last, bytes, random_below(60));
            break;
        case 3:
        case 4:
            add(FRAME_OPEN, ++last, bytes, random_below(60));
            break;
        case 5:
            add(FRAME_MESSAGE, stream, bytes, random_below(60));
            break;
        case 6:
            put_u32(bytes, random_below(100000));
            put_u32(bytes + 4, random_below(100000));
            add(FRAME_CREDIT, stream, bytes, 8);
            break;
        case 7:
            add(FRAME_EOF, stream, bytes, 1);
            break;
        case 8:
            add(FRAME_CLOSE, stream, bytes, random_below(40));
            break;
        default:
            add(FRAME_DATA, stream, bytes, 2 + random_below(random_below(8) ? 60 : MAX_DATA - 1));
        }
    }
}

static void mutate(void) {
    for (uint32_t count = random_below(6); count > 0 && input_size > 0; count--) {
        size_t at = random_below((uint32_t)input_size), run = 1 + random_below(24);
        switch (random_below(4)) {
        case 0:
            input[at] = (uint8_t)random_below(256);
            break;
        case 1:
            input[at] ^= (uint8_t)(1 << random_below(8));
            break;
        case 2:
            run = run < input_size - at ? run : input_size - at;
            memmove(input + at, input + at + run, input_size - at - run);
            input_size -= run;
            break;
        default:
            memmove(input + at + run, input + at, input_size - at);
            for (size_t i = 0; i < run; i++)
                input[at + i] = (uint8_t)random_below(256);
            input_size += run;
        }
    }
}

/* --- the parser, twice --- */

static uint64_t parse_in_pieces(uint32_t largest) {
    struct parser p;
    struct frame f;
    uint64_t hash = 1469598103934665603ULL; /* FNV-1a over all that came out */
    parser_init(&p);
    for (size_t at = 0; at < input_size;) {
        size_t room, piece = 1 + random_below(largest);
        uint8_t *to = parser_space(&p, &room);
        CHECK(room > 0);
        piece = piece < input_size - at ? piece : input_size - at;
        piece = piece < room ? piece : room;
        memcpy(to, input + at, piece);
        parser_fed(&p, piece);
        at += piece;
        enum parsed parsed;
        while ((parsed = parser_next(&p, &f)) != PARSED_NOTHING) {
            if (parsed == PARSED_VIOLATION) {
                parser_desynchronise(&p);
                hash = (hash ^ 0x100) * 1099511628211ULL;
                continue;
            }
            CHECK(f.size <= MAX_MESSAGE && f.cost >= f.size + FRAME_HEADER);
            hash = (hash ^ f.type ^ (uint64_t)f.stream << 8 ^ (uint64_t)f.cost << 40) * 1099511628211ULL;
            for (size_t i = 0; i < f.size; i++)
                hash = (hash ^ f.payload[i]) * 1099511628211ULL;
        }
    }
    parser_free(&p);
    return hash;
}

/* --- fields --- */

static void parse_fields(void) {
    struct payload built;
    struct spawn_spec spec;
    payload_begin(&built, KIND_PROCESS);
    payload_text(&built, PROCESS_ARG, "true");
    for (uint32_t count = random_below(8); count > 0; count--) {
        uint16_t tag = (uint16_t)random_below(12);
        if (random_below(2))
            payload_number(&built, tag, random_below(70000));
        else
            payload_text(&built, tag, "K=v");
    }
    input_size = built.size;
    memcpy(input, built.bytes, built.size);
    payload_free(&built);
    mutate();
    uint8_t *exact = must_alloc(input_size); /* so that reading past the end is seen */
    memcpy(exact, input, input_size);
    if (input_size > 0) {
        if (spawn_parse(&spec, exact + 1, input_size - 1))
            CHECK(spec.argc > 0 && spec.argv[spec.argc] == NULL && spec.env[spec.envc] == NULL);
        spawn_free(&spec);
    }
    free(exact);
}

/* --- a whole link --- */

static size_t held; /* data that streams were given and gave no credit back for */
static unsigned streams;

static bool on_data(struct stream *s, uint8_t channel, const uint8_t *bytes, size_t size) {
    CHECK(bytes != NULL && channel <= MAX_CHANNEL);
    size_t *kept = s->owner;
    *kept += size;
    held += size;
    CHECK(*kept <= DATA_WINDOW);
    if (random_below(2)) {
        held -= *kept;
        stream_consumed(s, *kept);
        *kept = 0;
    }
    return random_below(50) > 0;
}

static bool on_eof(struct stream *s, uint8_t channel) {
    if (random_below(2))
        stream_send_eof(s, channel);
    return true;
}

static bool on_message(struct stream *s, const uint8_t *bytes, size_t size) {
    if (size > 0 && stream_may_send(s)) {
        struct payload reply;
        payload_begin(&reply, bytes[0]);
        stream_send(s, &reply);
    }
    if (random_below(4) == 0)
        stream_close(s, "enough");
    return true;
}

static void on_closed(struct stream *s) {
    if (random_below(2))
        stream_close(s, "");
}

static void on_gone(struct stream *s) {
    size_t *kept = s->owner;
    held -= *kept;
    free(kept);
    streams--;
}

static const struct stream_ops OPS = {
    .data = on_data, .eof = on_eof, .message = on_message, .closed = on_closed, .gone = on_gone};

static bool on_open(struct link *l, struct stream *s, const uint8_t *bytes, size_t size) {
    (void)l, (void)bytes;
    if (size == 0)
        return false;
    s->ops = &OPS;
    s->owner = must_alloc(sizeof(size_t));
    streams++;
    if (random_below(10) == 0)
        stream_close(s, "refused");
    return true;
}

static void on_ended(struct link *l) { loop_stop(l->loop, 0); }

static void run_link(void) {
    int ends[2];
    struct loop loop;
    static struct link link;
    static uint8_t answers[1 << 20];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) == 0);
    loop_init(&loop);
    link_init(&link, &loop);
    link_attach(&link, ends[0]);
    link.open = on_open;
    link.ended = on_ended;
    for (size_t at = 0; at < input_size;) {
        size_t piece = 1 + random_below(5000);
        piece = piece < input_size - at ? piece : input_size - at;
        ssize_t count = write(ends[1], input + at, piece);
        if (count > 0)
            at += (size_t)count;
        loop_step(&loop, false);
        while (link_pump(&link))
            loop_step(&loop, false);
        CHECK(link.stream_count <= MAX_STREAMS && held <= (size_t)MAX_STREAMS * DATA_WINDOW);
        while (read(ends[1], answers, sizeof answers) > 0)
            ;
    }
    close(ends[1]);
    while (!loop.stopped) {
        loop_step(&loop, true);
        link_pump(&link);
    }
    loop_step(&loop, false);
    CHECK(link.stream_count == 0 && streams == 0 && held == 0);
    close(ends[0]);
    close(loop.epoll);
    free(loop.garbage);
    free(link.out);
    parser_free(&link.parser);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    unsigned long rounds = strtoul(argv[2], NULL, 10);
    stderr = fopen("/dev/null", "w"); /* the agent's complaints; those of checks and sanitizers go to descriptor 2 */
    for (unsigned long round = 0; round < rounds; round++) {
        state = strtoul(argv[1], NULL, 10) * 1000003 + round + 1; /* a round depends on nothing before it */
        state *= 2685821657736338717ULL;
        make_conversation();
        mutate();
        uint64_t whole = parse_in_pieces(MAX_INPUT);
        CHECK(parse_in_pieces(1 + random_below(64)) == whole);
        run_link();
        parse_fields();
    }
    printf("%lu rounds\n", rounds);
    return fclose(stderr);
}

/* The numbers of docs/protocol/link.md and docs/protocol/agent.md. */
#ifndef III_WIRE_H
#define III_WIRE_H

#include <stdint.h>

enum {
    LINK_VERSION = 1,
    AGENT_VERSION = 1,
    MAX_FRAME = 65536,
    LENGTH_SIZE = 4,
    FRAME_HEADER = 9,
    MAX_PAYLOAD = MAX_FRAME - FRAME_HEADER,
    MAX_DATA = 16384,
    DATA_OVERHEAD = FRAME_HEADER + 1,
    MAX_CHANNEL = 7,
    MAX_REASON = 1024,
    HELLO_SIZE = 60,
    HELLO_MAX = 512,
    MAGIC_SIZE = 16,

    /* what this agent takes */
    MAX_MESSAGE = 1 << 20,
    MAX_STREAMS = 256,
    DATA_WINDOW = 64 << 10,
    MESSAGE_WINDOW = 64 << 10,
    MAX_ENTROPY = 512,
    MAX_KEY = 64,
};

#define MAGIC "\xf1iii-link\0\r\n\x1a\n\xc3("

enum frame_type {
    FRAME_HELLO = 1,
    FRAME_PING,
    FRAME_PONG,
    FRAME_PART,
    FRAME_OPEN,
    FRAME_MESSAGE,
    FRAME_DATA,
    FRAME_EOF,
    FRAME_CREDIT,
    FRAME_CLOSE,
};

enum stream_kind { KIND_CONTROL = 1, KIND_PROCESS = 2, KIND_TUNNEL = 3, KIND_COPY = 4, KIND_DIAL = 5, KIND_ADOPT = 6 };

enum message_kind {
    MESSAGE_STARTED = 16,
    MESSAGE_SPAWN_ERROR = 17,
    MESSAGE_EXIT = 18,
    MESSAGE_SIGNAL = 19,
    MESSAGE_RESIZE = 20,
    MESSAGE_RELEASE = 21,
    MESSAGE_READY = 32,
    MESSAGE_CONNECTION = 33,
    MESSAGE_POWER_OFF = 34,
    MESSAGE_RESUME = 35,
    MESSAGE_GIVE_STATS = 36,
    MESSAGE_STATS = 37,
    MESSAGE_CONNECTED = 38,
};

enum feature {
    FEATURE_RESUME = 1 << 0,
    FEATURE_COPY = 1 << 1,
    FEATURE_STATS = 1 << 2,
    FEATURE_DIAL = 1 << 3,
    FEATURE_ADOPT = 1 << 4,
};

/* tags of OPEN, by kind of stream */
enum { CONTROL_PORT = 1, CONTROL_HOSTNAME = 2, CONTROL_DEAD_MAN_MS = 3, CONTROL_CLOCK_NS = 4, CONTROL_ENTROPY = 5 };
enum {
    PROCESS_ARG = 1,
    PROCESS_ENV = 2,
    PROCESS_CWD = 3,
    PROCESS_ROWS = 4,
    PROCESS_COLS = 5,
    PROCESS_UID = 6,
    PROCESS_GID = 7,
    PROCESS_GROUP = 8,
    PROCESS_LINGER_MS = 9,
    PROCESS_STDIN = 10,
};

enum { COPY_PATH = 1, COPY_DIRECTION = 2 }; /* and UID, GID, GROUP of a process */

/* tags of messages */
enum {
    TAG_PORT = 1,
    TAG_ROWS = 4,
    TAG_COLS = 5,
    TAG_VERSION = 16,
    TAG_FEATURES = 17,
    TAG_PID = 18,
    TAG_LISTEN_ERROR = 19,
    TAG_CONNECTION_ID = 20,
    TAG_GRACE_MS = 21,
    TAG_ERRNO = 22,
    TAG_TEXT = 23,
    TAG_CODE = 24,
    TAG_SIGNAL = 25,
    TAG_TOKEN = 26,
    TAG_CPU_NS = 27,
    TAG_MEMORY = 28,
    TAG_PROCESSES = 29,
    TAG_DISK_USED = 30,
    TAG_DISK_SIZE = 31,
    TAG_KEY = 32,
    TAG_CRITICAL = 0x8000,
};

static inline uint16_t get_u16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }

static inline uint32_t get_u32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline uint64_t get_u64(const uint8_t *p) { return get_u32(p) | (uint64_t)get_u32(p + 4) << 32; }

static inline void put_u16(uint8_t *p, uint16_t v) {
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

static inline void put_u32(uint8_t *p, uint32_t v) {
    put_u16(p, (uint16_t)v);
    put_u16(p + 2, (uint16_t)(v >> 16));
}

static inline void put_u64(uint8_t *p, uint64_t v) {
    put_u32(p, (uint32_t)v);
    put_u32(p + 4, (uint32_t)(v >> 32));
}

#endif

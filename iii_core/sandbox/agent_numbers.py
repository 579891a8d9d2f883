"""The numbers of the agent protocol (``docs/protocol/agent.md``). They never get another meaning."""

from __future__ import annotations

import enum


class Kind(enum.IntEnum):
    """The first byte of a payload: of `OPEN` (1 …) or of a message (16 …)."""

    CONTROL = 1
    PROCESS = 2
    TUNNEL = 3
    COPY = 4
    DIAL = 5
    ADOPT = 6
    STARTED = 16
    SPAWN_ERROR = 17
    EXIT = 18
    SIGNAL = 19
    RESIZE = 20
    RELEASE = 21
    READY = 32
    CONNECTION = 33
    POWER_OFF = 34
    RESUME = 35
    GIVE_STATS = 36
    STATS = 37
    CONNECTED = 38


class Feature(enum.IntFlag):
    """What an agent can do beyond the first version: bits of ``READY``."""

    RESUME = 1 << 0
    COPY = 1 << 1
    STATS = 1 << 2
    DIAL = 1 << 3
    ADOPT = 1 << 4


class Direction(enum.IntEnum):
    """Of a copy, as the host sees it."""

    OUT = 1
    IN = 2


class Tag(enum.IntEnum):
    """Tags of fields; those below 16 mean different things in different kinds of `OPEN`."""

    PORT = 1
    HOSTNAME = 2
    DEAD_MAN_MS = 3
    CLOCK_NS = 4
    ENTROPY = 5
    PATH = 1
    DIRECTION = 2
    ARG = 1
    ENV = 2
    CWD = 3
    ROWS = 4
    COLS = 5
    UID = 6
    GID = 7
    GROUP = 8
    LINGER_MS = 9
    STDIN = 10
    VERSION = 16
    FEATURES = 17
    PID = 18
    LISTEN_ERROR = 19
    CONNECTION_ID = 20
    GRACE_MS = 21
    ERRNO = 22
    TEXT = 23
    CODE = 24
    SIGNAL = 25
    TOKEN = 26
    CPU_NS = 27
    MEMORY = 28
    PROCESSES = 29
    DISK_USED = 30
    DISK_SIZE = 31
    KEY = 32

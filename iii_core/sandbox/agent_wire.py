"""The payloads of the agent protocol: TLV to and from Python values, without I/O (``docs/protocol/agent.md``).

What comes from a guest is hostile: whatever is malformed, or not expected at all, is a `LinkError`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from iii_core.errors import LinkError, UsageError
from iii_core.sandbox.agent_numbers import Direction as Direction
from iii_core.sandbox.agent_numbers import Feature as Feature
from iii_core.sandbox.agent_numbers import Kind as Kind
from iii_core.sandbox.agent_numbers import Tag as Tag

VERSION: Final = 1
MAX_TEXT: Final = 1024
MAX_KEY: Final = 64
_FIELD: Final = struct.Struct("<HI")
_NUMBER: Final = struct.Struct("<Q")


Field: TypeAlias = tuple[Tag, int | str | bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminalSize:
    """In characters, 1 … 65535."""

    rows: int
    cols: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """A program to start in a sandbox.

    Attributes:
        argv: a first item without a slash is searched for in the ``PATH`` of ``env``.
        env: the whole environment; nothing is inherited. Names without ``=``; nothing holds a NUL. Not in the repr.
        cwd: the working directory, which must exist; None for ``/workspace``.
        tty: give it a terminal of that size. stdin, stdout and stderr are then one, as channel 1.
        uid, gid, groups: whom it runs as; None for the agent's own user or group.
        linger: seconds that the end of the process waits for the rest of its process group.
        stdin: whether it is given input; a terminal always is. Else it reads ``/dev/null``.
    """

    argv: Sequence[str]
    env: Mapping[str, str] = field(repr=False)
    cwd: str | None = None
    tty: TerminalSize | None = None
    uid: int | None = None
    gid: int | None = None
    groups: Sequence[int] = ()
    linger: float = 0.0
    stdin: bool = False


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: with an exit code (0 … 255), or by a signal, and then ``code`` is 0."""

    code: int
    signal: int | None = None

    def as_shell(self) -> int:
        """As a shell reports it: the code, or 128 + signal."""
        return self.code if self.signal is None else 128 + self.signal

    def __str__(self) -> str:
        return f"exit {self.code}" if self.signal is None else f"signal {self.signal}"


@dataclass(frozen=True, slots=True)
class Started:
    """The program runs; ``pid`` is inside the sandbox."""

    pid: int


@dataclass(frozen=True, slots=True)
class SpawnFailure:
    """The program could not be started; ``text`` is the guest's, with control characters escaped."""

    errno: int
    text: str


@dataclass(frozen=True, slots=True)
class Ready:
    """The agent is configured. ``listen_errors`` are the guest's words, escaped."""

    version: int
    features: int
    pid: int
    listen_errors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Connection:
    """Somebody inside connected to ``port``; claim it by its ``id``."""

    id: int
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxStats:
    """What a sandbox uses, as its agent says: a guest's own words.

    Attributes:
        cpu_ns: CPU time of all its processes so far, ended ones included, to 10 ms.
        memory: bytes of memory that its processes have for themselves (resident, without files).
        processes: how many there are.
        disk_used, disk_size: bytes of the file system that takes what is written; None where that is the host's.
    """

    cpu_ns: int
    memory: int
    processes: int
    disk_used: int | None = None
    disk_size: int | None = None


@dataclass(frozen=True, slots=True)
class StatsAnswer:
    """The answer to the request with that token."""

    token: int
    stats: SandboxStats


# --- encoding ---


def encode(kind: Kind, fields: Iterable[Field] = ()) -> bytes:
    """A payload. Numbers are u64, text is UTF-8 (undecodable bytes of the host's come out as they were)."""
    parts = [bytes([kind])]
    for tag, value in fields:
        match value:
            case int():
                data = _NUMBER.pack(value)
            case str():
                data = value.encode(errors="surrogateescape")
            case _:
                data = value
        parts += [_FIELD.pack(tag, len(data)), data]
    return b"".join(parts)


def encode_configure(
    *,
    ports: Sequence[int],
    dead_man: float,
    clock_ns: int | None = None,
    entropy: bytes | None = None,
    hostname: str | None = None,
) -> bytes:
    """`OPEN` of the control stream.

    ``dead_man`` in seconds, 0 for never; ``clock_ns`` is the time of day in nanoseconds since 1970; ``entropy`` 1 … 512
    random bytes that nobody else knows. None leaves the guest's as they are.
    """
    fields: list[Field] = [(Tag.CLOCK_NS, clock_ns)] if clock_ns is not None else []
    fields += [(Tag.ENTROPY, entropy)] if entropy is not None else []
    fields += [(Tag.PORT, port) for port in ports]
    fields.append((Tag.DEAD_MAN_MS, _milliseconds(dead_man)))
    if hostname is not None:
        fields.append((Tag.HOSTNAME, hostname))
    return encode(Kind.CONTROL, fields)


def encode_process(spec: ProcessSpec) -> bytes:
    """`OPEN` of a process. Raises `UsageError` for a spec that no guest could carry out."""
    if not spec.argv:
        raise UsageError("no program to start: argv is empty")
    fields: list[Field] = [(Tag.ARG, _text("argument", arg)) for arg in spec.argv]
    for name, value in spec.env.items():
        if not name or "=" in name:
            raise UsageError(f"{name!r} is no name of an environment variable")
        fields.append((Tag.ENV, f"{_text('name of an environment variable', name)}={_text(f'value of {name}', value)}"))
    if spec.cwd is not None:
        fields.append((Tag.CWD, _text("working directory", spec.cwd)))
    if spec.tty is not None:
        fields += _size(spec.tty)
    fields += _identity(spec.uid, spec.gid, spec.groups)
    fields.append((Tag.LINGER_MS, _milliseconds(spec.linger)))
    fields.append((Tag.STDIN, int(spec.stdin)))
    return encode(Kind.PROCESS, fields)


def encode_copy(path: str, direction: Direction, *, uid: int | None = None, gid: int | None = None) -> bytes:
    """`OPEN` of a copy. Raises `UsageError` for a path that cannot be."""
    if not path:
        raise UsageError("no path inside the sandbox is named")
    fields: list[Field] = [(Tag.PATH, _text("path", path)), (Tag.DIRECTION, int(direction))]
    return encode(Kind.COPY, [*fields, *_identity(uid, gid, ())])


def _identity(uid: int | None, gid: int | None, groups: Sequence[int]) -> list[Field]:
    if any(not 0 <= number < 2**32 - 1 for number in (uid or 0, gid or 0, *groups)):
        raise UsageError("user and group ids are numbers from 0 to 4294967294")
    fields: list[Field] = [(Tag.UID, uid)] if uid is not None else []
    fields += [(Tag.GID, gid)] if gid is not None else []
    return fields + [(Tag.GROUP, group) for group in groups]


def encode_resize(size: TerminalSize) -> bytes:
    """A message to a process."""
    return encode(Kind.RESIZE, _size(size))


def encode_signal(number: int) -> bytes:
    """A message to a process."""
    if not 1 <= number <= 64:
        raise UsageError(f"there is no signal {number}")
    return encode(Kind.SIGNAL, [(Tag.SIGNAL, number)])


def encode_release(key: str) -> bytes:
    """A message to a process. Raises `UsageError` for a key that is none: 1 … 64 bytes."""
    return encode(Kind.RELEASE, [(Tag.KEY, _key(key))])


def encode_adopt(key: str) -> bytes:
    """`OPEN` of a process that was released under ``key``."""
    return encode(Kind.ADOPT, [(Tag.KEY, _key(key))])


def encode_power_off(grace: float) -> bytes:
    """A message on the control stream."""
    return encode(Kind.POWER_OFF, [(Tag.GRACE_MS, _milliseconds(grace))])


def encode_resume(*, clock_ns: int, entropy: bytes) -> bytes:
    """A message on the control stream; values as for `encode_configure`."""
    return encode(Kind.RESUME, [(Tag.CLOCK_NS, clock_ns), (Tag.ENTROPY, entropy)])


def encode_give_stats(token: int) -> bytes:
    """A message on the control stream."""
    return encode(Kind.GIVE_STATS, [(Tag.TOKEN, token)])


def encode_dial(port: int) -> bytes:
    """`OPEN` of a connection to a port inside."""
    if not 1 <= port <= 65535:
        raise UsageError(f"there is no port {port}")
    return encode(Kind.DIAL, [(Tag.PORT, port)])


def encode_tunnel(connection_id: int) -> bytes:
    """`OPEN` of a tunnel."""
    return encode(Kind.TUNNEL, [(Tag.CONNECTION_ID, connection_id)])


def _size(size: TerminalSize) -> list[Field]:
    if not (1 <= size.rows <= 65535 and 1 <= size.cols <= 65535):
        raise UsageError(f"a terminal cannot have {size.rows} rows and {size.cols} columns")
    return [(Tag.ROWS, size.rows), (Tag.COLS, size.cols)]


def _milliseconds(seconds: float) -> int:
    return max(0, min(2**31 - 1, round(seconds * 1000)))


def _key(key: str) -> str:
    if not 1 <= len(key.encode(errors="surrogateescape")) <= MAX_KEY:
        raise UsageError(f"a process is kept under a key of 1 to {MAX_KEY} bytes, not {key!r}")
    return _text("key", key)


def _text(what: str, value: str) -> str:
    if "\0" in value:
        raise UsageError(f"the {what} holds a NUL character")
    return value


# --- decoding ---


def decode_process_message(payload: bytes) -> Started | SpawnFailure | ExitStatus:
    """A message of a process. Raises `LinkError`."""
    fields = _Fields(payload)
    match fields.kind:
        case Kind.STARTED:
            return Started(fields.number(Tag.PID, 1, 2**31 - 1))
        case Kind.SPAWN_ERROR:
            return SpawnFailure(fields.number(Tag.ERRNO, 1, 4095), fields.text(Tag.TEXT))
        case Kind.EXIT if fields.has(Tag.SIGNAL):
            return ExitStatus(0, fields.number(Tag.SIGNAL, 1, 64))
        case Kind.EXIT:
            return ExitStatus(fields.number(Tag.CODE, 0, 255))
        case _:
            raise LinkError(f"the guest agent sent a message of kind {fields.kind} on a process stream")


def decode_control_message(payload: bytes) -> Ready | Connection | StatsAnswer | None:
    """A message of the control stream; None for a kind from the future. Raises `LinkError`."""
    fields = _Fields(payload)
    match fields.kind:
        case Kind.READY:
            return Ready(
                fields.number(Tag.VERSION, 1, 2**32 - 1),
                fields.number(Tag.FEATURES, 0, 2**64 - 1),
                fields.number(Tag.PID, 1, 2**31 - 1),
                fields.texts(Tag.LISTEN_ERROR),
            )
        case Kind.CONNECTION:
            return Connection(fields.number(Tag.CONNECTION_ID, 1, 2**64 - 1), fields.number(Tag.PORT, 1, 65535))
        case Kind.STATS:
            return StatsAnswer(fields.number(Tag.TOKEN, 0, 2**64 - 1), _decode_stats(fields))
        case _:
            return None


def is_connected(payload: bytes) -> bool:
    """Whether a message on a dialled connection says that it is there. Raises `LinkError` for a malformed one."""
    return _Fields(payload).kind == Kind.CONNECTED


def _decode_stats(fields: _Fields) -> SandboxStats:
    has_disk = fields.has(Tag.DISK_USED) and fields.has(Tag.DISK_SIZE)
    return SandboxStats(
        cpu_ns=fields.number(Tag.CPU_NS, 0, 2**63),
        memory=fields.number(Tag.MEMORY, 0, 2**63),
        processes=fields.number(Tag.PROCESSES, 0, 2**31),
        disk_used=fields.number(Tag.DISK_USED, 0, 2**63) if has_disk else None,
        disk_size=fields.number(Tag.DISK_SIZE, 0, 2**63) if has_disk else None,
    )


class _Fields:
    """A payload taken apart."""

    def __init__(self, payload: bytes) -> None:
        if not payload:
            raise LinkError("the guest agent sent an empty message")
        self.kind = payload[0]
        self._values: dict[int, list[bytes]] = {}
        for tag, value in _fields(payload):
            self._values.setdefault(tag, []).append(value)

    def has(self, tag: Tag) -> bool:
        return tag in self._values

    def number(self, tag: Tag, low: int, high: int) -> int:
        value = self._values.get(tag, [b""])[-1]
        if len(value) != _NUMBER.size:
            raise LinkError(f"the guest agent sent a message of kind {self.kind} without a number {tag.name}")
        number = int(_NUMBER.unpack(value)[0])
        if not low <= number <= high:
            raise LinkError(f"the guest agent sent {tag.name} = {number}")
        return number

    def text(self, tag: Tag) -> str:
        return _escaped(self._values.get(tag, [b""])[-1])

    def texts(self, tag: Tag) -> tuple[str, ...]:
        return tuple(_escaped(value) for value in self._values.get(tag, []))


def _fields(payload: bytes) -> Iterator[tuple[int, bytes]]:
    at = 1
    while at < len(payload):
        if len(payload) - at < _FIELD.size:
            raise LinkError("the guest agent sent a malformed message")
        tag, size = _FIELD.unpack_from(payload, at)
        at += _FIELD.size
        if size > len(payload) - at:
            raise LinkError("the guest agent sent a malformed message")
        yield tag, payload[at : at + size]
        at += size


def _escaped(text: bytes) -> str:
    """A guest's words, fit for a terminal and a log."""
    decoded = text[:MAX_TEXT].decode(errors="replace")
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in decoded)

"""The payloads of the agent protocol, on the host's side."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iii_core.errors import LinkError, UsageError
from iii_core.sandbox import agent_wire as wire
from iii_core.sandbox.agent_wire import (
    Connection,
    ExitStatus,
    Kind,
    ProcessSpec,
    Ready,
    SpawnFailure,
    Started,
    Tag,
    encode,
)


def field(tag: int, value: bytes) -> bytes:
    return struct.pack("<HI", tag, len(value)) + value


def test_messages_of_a_process() -> None:
    decode = wire.decode_process_message
    assert decode(encode(Kind.STARTED, [(Tag.PID, 7)])) == Started(7)
    assert decode(encode(Kind.EXIT, [(Tag.CODE, 255)])) == ExitStatus(255)
    assert decode(encode(Kind.EXIT, [(Tag.SIGNAL, 9)])) == ExitStatus(0, 9)
    assert decode(encode(Kind.SPAWN_ERROR, [(Tag.ERRNO, 2), (Tag.TEXT, "no")])) == SpawnFailure(2, "no")


def test_messages_of_the_control_stream() -> None:
    fields = [(Tag.VERSION, 1), (Tag.FEATURES, 0), (Tag.PID, 1), (Tag.LISTEN_ERROR, "a"), (Tag.LISTEN_ERROR, "b")]
    assert wire.decode_control_message(encode(Kind.READY, fields)) == Ready(1, 0, 1, ("a", "b"))
    connection = encode(Kind.CONNECTION, [(Tag.CONNECTION_ID, 5), (Tag.PORT, 80)])
    assert wire.decode_control_message(connection) == Connection(5, 80)
    assert wire.decode_control_message(b"\xc8") is None, "a kind from the future"


def test_unknown_fields_are_ignored_and_the_last_of_a_kind_counts() -> None:
    message = encode(Kind.EXIT, [(Tag.CODE, 1), (Tag.CODE, 2)]) + field(0x4000, b"new")
    assert wire.decode_process_message(message) == ExitStatus(2)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        bytes([Kind.STARTED]),
        bytes([Kind.STARTED]) + b"\1",
        bytes([Kind.STARTED]) + field(18, b"\1\0\0\0"),
        encode(Kind.STARTED, [(Tag.PID, 0)]),
        encode(Kind.STARTED, [(Tag.PID, 2**31)]),
        encode(Kind.EXIT, [(Tag.CODE, 256)]),
        encode(Kind.EXIT, [(Tag.SIGNAL, 65)]),
        encode(Kind.EXIT, [(Tag.SIGNAL, 0)]),
        encode(Kind.EXIT),
        encode(Kind.SPAWN_ERROR, [(Tag.ERRNO, 0)]),
        encode(Kind.SIGNAL, [(Tag.SIGNAL, 9)]),
        bytes([Kind.EXIT]) + struct.pack("<HI", 24, 2**32 - 1),
    ],
)
def test_malformed_messages_are_violations(payload: bytes) -> None:
    with pytest.raises(LinkError):
        wire.decode_process_message(payload)


@given(st.binary(max_size=200))
def test_arbitrary_payloads_are_values_or_violations(payload: bytes) -> None:
    for decode in (wire.decode_process_message, wire.decode_control_message):
        with suppress(LinkError):
            decode(payload)


@given(st.binary(max_size=3000))
def test_the_words_of_a_guest_are_fit_for_a_terminal(text: bytes) -> None:
    failure = wire.decode_process_message(encode(Kind.SPAWN_ERROR, [(Tag.ERRNO, 1), (Tag.TEXT, text)]))
    assert isinstance(failure, SpawnFailure)
    assert failure.text.isprintable()
    assert len(failure.text) <= 10 * wire.MAX_TEXT


def test_an_environment_is_not_in_the_repr() -> None:
    assert "canary" not in repr(ProcessSpec(argv=["x"], env={"TOKEN": "canary"}))


@pytest.mark.parametrize("rows", [0, 65536, -1])
def test_a_terminal_of_no_size(rows: int) -> None:
    with pytest.raises(UsageError):
        wire.encode_resize(wire.TerminalSize(rows=rows, cols=80))


@pytest.mark.parametrize("number", [0, 65, -9])
def test_no_such_signal(number: int) -> None:
    with pytest.raises(UsageError):
        wire.encode_signal(number)

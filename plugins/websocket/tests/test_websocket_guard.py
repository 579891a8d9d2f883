"""The limits that hold on frame headers."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from iii_plugin_websocket.guard import FrameGuard, MessageTooLarge


def frame(opcode: int, payload: bytes, *, fin: bool = True, masked: bool = True) -> bytes:
    size, mask = len(payload), 0x80 if masked else 0
    if size < 126:
        length = bytes([mask | size])
    elif size < 2**16:
        length = bytes([mask | 126]) + struct.pack("!H", size)
    else:
        length = bytes([mask | 127]) + struct.pack("!Q", size)
    return bytes([(0x80 if fin else 0) | opcode]) + length + (b"\0\0\0\0" if masked else b"") + payload


def header(opcode: int, size: int, *, fin: bool = True) -> bytes:
    return bytes([(0x80 if fin else 0) | opcode, 0x80 | 127]) + struct.pack("!Q", size) + b"\0\0\0\0"


def feed_often(guard: FrameGuard, data: bytes) -> None:
    for _ in range(60):
        guard.feed(data)


fragments = st.lists(st.binary(max_size=300), min_size=1, max_size=4)
messages = st.lists(st.tuples(fragments, st.booleans()), max_size=5)


@given(messages=messages, masked=st.booleans(), cuts=st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_valid_streams_pass_however_they_are_cut(
    messages: list[tuple[list[bytes], bool]], masked: bool, cuts: list[int]
) -> None:
    stream = b""
    for parts, ping in messages:
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            stream += frame(0 if index else 2, part, fin=last, masked=masked)
            if ping:
                stream += frame(9, b"between", masked=masked)
    guard = FrameGuard(max_message=1200)
    position = 0
    while position < len(stream):
        step = cuts[position % len(cuts)]
        guard.feed(stream[position : position + step])
        position += step
    assert not guard.close_seen
    guard.feed(frame(8, b"", masked=masked))
    assert guard.close_seen


@given(parts=fragments, cut=st.integers(1, 50))
def test_the_limit_is_exact_over_all_fragments(parts: list[bytes], cut: int) -> None:
    total = sum(map(len, parts))
    stream = b"".join(frame(0 if i else 1, part, fin=i == len(parts) - 1) for i, part in enumerate(parts))

    def feed(limit: int) -> None:
        guard = FrameGuard(max_message=limit)
        for _ in range(2):  # the count starts again with every message
            for position in range(0, len(stream), cut):
                guard.feed(stream[position : position + cut])

    feed(total)
    if total:
        with pytest.raises(MessageTooLarge):
            feed(total - 1)


def test_a_long_frame_is_refused_on_its_header() -> None:
    guard = FrameGuard(max_message=1000)
    with pytest.raises(MessageTooLarge, match="longer than 1000 bytes"):
        guard.feed(header(2, 2**62))


def test_empty_fragments_do_not_go_on_for_ever() -> None:
    guard = FrameGuard(max_message=1000, max_pieces=50)
    guard.feed(frame(1, b"", fin=False))
    with pytest.raises(MessageTooLarge, match="more than 50 pieces"):
        feed_often(guard, frame(0, b"", fin=False))


def test_a_dripping_message_is_refused() -> None:
    guard = FrameGuard(max_message=1000, max_pieces=50)
    guard.feed(header(2, 500))
    with pytest.raises(MessageTooLarge, match="pieces"):
        feed_often(guard, b"x")


def test_a_message_in_too_many_fragments_is_refused() -> None:
    guard = FrameGuard(max_message=1000, max_fragments=50)
    guard.feed(b"".join(frame(1 if i == 0 else 0, b"x", fin=i == 49) for i in range(50)))
    with pytest.raises(MessageTooLarge, match="more than 50 fragments"):
        guard.feed(b"".join(frame(1 if i == 0 else 0, b"", fin=False) for i in range(51)))


@given(payloads=st.lists(st.binary(max_size=200), min_size=1, max_size=20), cut=st.integers(1, 500))
def test_so_many_frames_are_looked_at_as_was_asked(payloads: list[bytes], cut: int) -> None:
    """Where it stops is the end of a frame, and from there it goes on."""
    frames = [frame(2, payload) for payload in payloads]
    stream, ends = b"".join(frames), [0]
    for part in frames:
        ends.append(ends[-1] + len(part))
    guard, position, stops = FrameGuard(max_message=200), 0, [0]
    while position < len(stream):
        end = guard.feed(stream[: position + cut], position, 3)
        assert end > position
        if end < min(position + cut, len(stream)):
            assert end in ends
            stops.append(end)
        position = end
    if cut == 500 and len(stream) <= 500:
        assert stops[1:] == [end for end in ends[3::3] if end < len(stream)]


def test_pieces_are_counted_per_message() -> None:
    guard = FrameGuard(max_message=1000, max_pieces=10)
    for _ in range(200):
        guard.feed(frame(9, b"ping"))
        guard.feed(frame(1, b"message"))


def test_nothing_is_read_behind_a_close_frame() -> None:
    guard = FrameGuard(max_message=10)
    guard.feed(frame(8, b"\x03\xe8") + header(2, 2**40))
    assert guard.close_seen

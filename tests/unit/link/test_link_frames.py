"""The codec of the framed link."""

from __future__ import annotations

import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iii_core.errors import LinkError
from iii_core.link import frames
from iii_core.link.frames import Decoder, Frame, Hello

HELLO = Hello(
    epoch=5, peer_epoch=6, features=3, max_message=4096, max_streams=2, data_window=1 << 15, message_window=1024
)
STREAMS = st.integers(1, 2**32 - 1)
PAYLOADS = st.binary(max_size=200)
ENCODED = st.one_of(
    st.builds(frames.encode_message, st.sampled_from([frames.OPEN, frames.MESSAGE]), STREAMS, PAYLOADS),
    st.builds(frames.encode_data, STREAMS, st.integers(0, 7), st.binary(min_size=1, max_size=200)),
    st.builds(frames.encode_token, st.sampled_from([frames.PING, frames.PONG]), st.integers(0, 2**64 - 1)),
    st.builds(frames.encode_credit, STREAMS, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    st.builds(frames.encode_close, STREAMS, st.text(max_size=20)),
)


def decoder() -> Decoder:
    """One that is synchronised."""
    fresh = Decoder(max_message=1 << 20)
    fresh.feed(HELLO.encode())
    hello = fresh.next_frame()
    assert hello is not None
    assert Hello.decode(hello.payload) == HELLO
    return fresh


def drain(source: Decoder) -> list[Frame]:
    found: list[Frame] = []
    while (frame := source.next_frame()) is not None:
        found.append(frame)
    return found


@given(st.lists(ENCODED, max_size=10), st.integers(1, 50))
def test_frames_come_out_as_they_went_in_however_cut(encoded: list[bytes], piece: int) -> None:
    whole, cut = decoder(), decoder()
    data = b"".join(encoded)
    whole.feed(data)
    expected = drain(whole)
    found: list[Frame] = []
    for at in range(0, len(data), piece):
        cut.feed(data[at : at + piece])
        found += drain(cut)
    assert found == expected
    assert [frame.cost for frame in found] == [len(item) for item in encoded]
    assert not cut.in_frame


@given(st.integers(0, 200_000))
@settings(max_examples=20)
def test_messages_of_any_size(size: int) -> None:
    payload = bytes(size)
    encoded = frames.encode_message(frames.MESSAGE, 3, payload)
    target = decoder()
    target.feed(encoded)
    assert drain(target) == [Frame(frames.MESSAGE, 3, payload, len(encoded))]
    assert len(encoded) == size + frames.HEADER * max(1, -(-size // frames.MAX_PAYLOAD))


@given(st.binary(max_size=300), st.booleans())
def test_what_comes_before_hello_is_skipped(garbage: bytes, tease: bool) -> None:
    target = Decoder(max_message=4096)
    if tease:
        garbage += HELLO.encode()[4:24]
    for byte in garbage:
        target.feed(bytes([byte]))
        assert target.next_frame() is None
    target.feed(HELLO.encode())
    (frame,) = drain(target)
    assert Hello.decode(frame.payload) == HELLO


def test_skipping_has_an_end() -> None:
    target = Decoder(max_message=4096)
    for _ in range(frames.MAX_SKIP // 65536):
        target.feed(bytes(65536))
        assert target.next_frame() is None
    target.feed(bytes(65536))
    with pytest.raises(LinkError, match="no HELLO"):
        target.next_frame()


@given(st.binary(max_size=2000))
def test_arbitrary_bytes_are_frames_or_a_violation(data: bytes) -> None:
    target = decoder()
    target.feed(data)
    try:
        found = drain(target)
    except LinkError:
        return
    assert sum(frame.cost for frame in found) <= len(data)


VIOLATIONS = {
    "length 0": bytes(9),
    "length 4": struct.pack("<IBI", 4, frames.MESSAGE, 1),
    "length beyond a frame": struct.pack("<IBI", 65533, frames.MESSAGE, 1),
    "unknown type": struct.pack("<IBI", 5, 11, 1),
    "type 0": struct.pack("<IBI", 5, 0, 1),
    "ping for a stream": frames.encode_token(frames.PING, 1)[:5] + b"\1\0\0\0" + bytes(8),
    "data for stream 0": struct.pack("<IBIBB", 7, frames.DATA, 0, 1, 1),
    "empty data": struct.pack("<IBIB", 6, frames.DATA, 1, 1),
    "too much data": struct.pack("<IBI", 5 + 1 + 16385, frames.DATA, 1),
    "empty part": struct.pack("<IBI", 5, frames.PART, 1),
    "short credit": struct.pack("<IBI", 5 + 7, frames.CREDIT, 1),
    "long reason": struct.pack("<IBI", 5 + 1025, frames.CLOSE, 1),
    "short hello": struct.pack("<IBI", 5 + 59, frames.HELLO, 0),
    "data within a message": frames.encode_frame(frames.PART, 1, b"x") + frames.encode_data(1, 0, b"x"),
    "ping within a message": frames.encode_frame(frames.PART, 1, b"x") + frames.encode_token(frames.PING, 0),
    "message of two streams": frames.encode_frame(frames.PART, 1, b"x") + frames.encode_frame(frames.OPEN, 2, b"x"),
    "endless message": frames.encode_frame(frames.PART, 1, bytes(60_000)) * 18,
}


@pytest.mark.parametrize("data", VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_violations(data: bytes) -> None:
    target = decoder()
    target.feed(data)
    with pytest.raises(LinkError):
        drain(target)


def test_a_message_in_one_frame_is_bounded_too() -> None:
    target = Decoder(max_message=2000)
    target.feed(HELLO.encode() + frames.encode_frame(frames.MESSAGE, 1, bytes(2001)))
    assert target.next_frame() is not None
    with pytest.raises(LinkError, match="longer than 2000"):
        target.next_frame()


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_message", 1023), ("max_streams", 0), ("data_window", 32767), ("message_window", 1023), ("epoch", 0)],
)
def test_a_hello_below_the_least_allowed(field: str, value: int) -> None:
    values = {name: getattr(HELLO, name) for name in Hello.__dataclass_fields__} | {field: value}
    with pytest.raises(LinkError):
        Hello.decode(Hello(**values).encode()[frames.HEADER :])


def test_another_version_names_both() -> None:
    values = {name: getattr(HELLO, name) for name in Hello.__dataclass_fields__} | {"version": 2}
    with pytest.raises(LinkError, match="version 2 of the link, this side speaks version 1") as caught:
        Hello.decode(Hello(**values).encode()[frames.HEADER :])
    assert caught.value.hint


def test_a_hello_may_grow() -> None:
    longer = HELLO.encode()[frames.HEADER :] + b"more"
    assert Hello.decode(longer) == HELLO


def test_decoding_is_linear() -> None:
    """A decoder that moved its buffer for each frame would take minutes for this."""
    encoded = frames.encode_data(1, 0, b"x") * 100_000
    target = decoder()
    target.feed(encoded)
    before = time.process_time()
    assert len(drain(target)) == 100_000
    assert time.process_time() - before < 5

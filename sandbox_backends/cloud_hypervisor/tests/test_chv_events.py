"""The stream of a VMM's events, whole and broken."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from iii_sandbox_cloud_hypervisor.events import MAX_EVENT, EventParser, VmmEvent


def document(source: str, event: str, **properties: str) -> bytes:
    """As the VMM writes it: over several lines, and an empty one after it."""
    timestamp = {"secs": 1, "nanos": 2}
    found = {"timestamp": timestamp, "source": source, "event": event, "properties": properties or None}
    return json.dumps(found, indent=2).encode() + b"\n\n"


@given(st.lists(st.sampled_from(["booting", "booted", "rebooting"])), st.integers(1, 50))
def test_events_come_out_however_they_are_cut(names: list[str], size: int) -> None:
    stream = b"".join(document("vm", name) for name in names)
    parser = EventParser()
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    assert [event for piece in pieces for event in parser.feed(piece)] == [VmmEvent("vm", name) for name in names]


@pytest.mark.parametrize(
    "garbage",
    [
        b"not json\n\n",
        b'{"source": "vm"}\n\n',
        b'{"source": 1, "event": "x"}\n\n',
        b"\xff\xfe\n\n",
        b"[" * 5000 + b"\n\n",
        b"\n\n\n\n",
        b'{"source": "vm", "event": "\xff"}\n\n',
        b"x" * (MAX_EVENT + 1),
    ],
)
def test_what_is_no_event_is_skipped(garbage: bytes) -> None:
    parser = EventParser()
    found = [*parser.feed(garbage), *parser.feed(b"\n\n"), *parser.feed(document("vm", "booted"))]
    assert found == [VmmEvent("vm", "booted")]


@given(st.lists(st.binary(max_size=200)))
def test_nothing_breaks_it(pieces: list[bytes]) -> None:
    parser = EventParser()
    for piece in pieces:
        list(parser.feed(piece))
    assert list(parser.feed(b"\n\n" + document("vm", "booted")))[-1] == VmmEvent("vm", "booted")


def test_what_does_not_end_is_not_kept() -> None:
    parser = EventParser()
    for _ in range(100):
        assert list(parser.feed(b"x" * 4096)) == []
    assert len(vars(parser)["_rest"]) <= MAX_EVENT


@pytest.mark.parametrize(
    ("event", "is_reboot"),
    [
        (VmmEvent("vm", "rebooting"), True),
        (VmmEvent("vm", "rebooted"), True),
        (VmmEvent("vm", "booted"), False),
        (VmmEvent("virtio-device", "rebooting"), False),
    ],
)
def test_reboots(event: VmmEvent, is_reboot: bool) -> None:
    assert event.is_reboot is is_reboot

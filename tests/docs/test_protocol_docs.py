"""The numbers in docs/protocol are those of the code: frame types, limits, kinds and tags."""

from __future__ import annotations

import re

from iii_core.link import frames
from iii_core.sandbox.agent_wire import Kind, Tag
from iiitools.worktree import ROOT

LINK = (ROOT / "docs" / "protocol" / "link.md").read_text()
AGENT = (ROOT / "docs" / "protocol" / "agent.md").read_text()
FRAME_TYPES = ("HELLO", "PING", "PONG", "PART", "OPEN", "MESSAGE", "DATA", "EOF", "CREDIT", "CLOSE")


def named_numbers(text: str) -> set[tuple[int, str]]:
    """Pairs such as (16, "VERSION"), from prose and table rows, also of several (``| 4, 5 | `ROWS`, `COLS` |``)."""
    found = {(int(number), name) for number, name in re.findall(r"\b(\d+) `([A-Z_]+)`", text)}
    for numbers, names in re.findall(r"^\| ([\d, ]+) \| ((?:`[A-Z_]+`(?:, )?)+)", text, re.MULTILINE):
        found |= set(zip(map(int, numbers.split(",")), re.findall(r"`(\w+)`", names), strict=True))
    return found


def test_frame_types() -> None:
    assert {(vars(frames)[name], name) for name in FRAME_TYPES} <= named_numbers(LINK)


def test_sizes_of_the_link() -> None:
    thousands = {number.replace(" ", "") for number in re.findall(r"\d+(?: \d{3})+|\d+", LINK)}
    sizes = (frames.MAX_FRAME, frames.MAX_PAYLOAD, frames.MAX_DATA, frames.MAX_REASON, frames.MAX_CHANNEL)
    assert {str(size) for size in sizes} <= thousands
    assert " ".join(f"{byte:02x}" for byte in frames.MAGIC) in LINK


def test_kinds_and_tags_of_the_agent() -> None:
    documented = named_numbers(AGENT)
    wanted = {(int(kind), kind.name) for kind in Kind}
    wanted |= {(int(member), name) for name, member in Tag.__members__.items()}
    assert wanted <= documented, sorted(wanted - documented)

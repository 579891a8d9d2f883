"""Numbers on the command line, without the time that converting options costs (`iii_core.cli.quick`)."""

from __future__ import annotations

from typing import Final

from iii_core.errors import UsageError

MAX_PORT: Final = 65535


def parse_number(text: str | None, option: str, most: int) -> int | None:
    """A whole number from 1 to ``most``; None for None. Raises `UsageError`, which names the option."""
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:20]) <= most:
        raise UsageError(f"{option} {text!r} is not a number from 1 to {most}")
    return int(text)

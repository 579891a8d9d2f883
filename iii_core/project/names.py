"""Worker names: what they may look like, and which ones the engine itself answers to."""

from __future__ import annotations

import re
from typing import Final

from iii_core.errors import InvalidName

MAX_LENGTH: Final = 128
_VALID = re.compile(r"[A-Za-z0-9._-]+\Z")

# Workers that live inside the original engine (spec worker-cli §1.1), with the unprefixed names of newer generations.
# Only file-only commands use this table; a running engine knows better, because plugins tell it.
ENGINE_WORKERS: Final = frozenset(
    {
        "configuration",
        "iii-bridge",
        "iii-cron",
        "iii-engine-functions",
        "iii-exec",
        "iii-http",
        "iii-http-functions",
        "iii-observability",
        "iii-pubsub",
        "iii-queue",
        "iii-sandbox",
        "iii-state",
        "iii-stream",
        "iii-telemetry",
        "iii-worker-manager",
        "iii-worker-ops",
        "cron",
        "http",
        "pubsub",
        "queue",
        "state",
        "stream",
    }
)


def check_name(name: str) -> str:
    """Give the name back if it is a valid worker name (spec worker-cli §0.6), which makes it safe as a file name.

    Raises `InvalidName` before anything touches the disk.
    """
    reason = _fault(name)
    if reason is None:
        return name
    raise InvalidName(
        f"Worker name {name!r} {reason}",
        hint="use letters, digits, '.', '_' and '-'; not '..', and no leading '.'",
        details={"name": name, "reason": reason},
    )


def is_valid_name(name: str) -> bool:
    """Whether `check_name` takes the name."""
    return _fault(name) is None


def _fault(name: str) -> str | None:
    if not name:
        return "is empty"
    if len(name) > MAX_LENGTH:
        return f"is longer than {MAX_LENGTH} characters"
    if not _VALID.match(name):
        return "contains invalid characters"
    if ".." in name:
        return "contains '..'"
    if name.startswith("."):
        return "starts with '.'"
    return None

"""The commands of the core by group: known without importing any of them."""

from __future__ import annotations

from typing import Final

from iii_core.cli.lazy import Lazy, from_module

ROOT: Final = {
    "worker": Lazy("Add, run and inspect the workers of this project", from_module("iii_core.cli.worker.app")),
    "trigger": Lazy("Call a function", from_module("iii_core.cli.trigger")),
    "t": Lazy("Short for trigger", from_module("iii_core.cli.trigger"), hidden=True),
    "sandbox": Lazy("See and prepare what isolates workers", from_module("iii_core.cli.sandbox.app")),
    "doctor": Lazy("Find what is missing here, and how to put it right", from_module("iii_core.cli.doctor")),
    "plugins": Lazy("See which plugins are installed", from_module("iii_core.cli.plugins")),
}
"""``iii …``"""

GROUPS: Final = {
    "sandbox": {
        "backends": Lazy("List sandbox backends, and which work here", from_module("iii_core.cli.sandbox.backends")),
    },
}
"""The groups that plugins may add to, with the core's own commands in each: ``iii sandbox …``."""


def is_core_command(name: str) -> bool:
    """Whether the core has a command of that name, ``sandbox.backends`` for ``iii sandbox backends``."""
    group, dot, rest = name.partition(".")
    return rest in GROUPS.get(group, {}) if dot else name in ROOT

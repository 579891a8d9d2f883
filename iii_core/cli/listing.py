"""Which commands plugins declare, for help and completion, without importing the plugins every time.

Discovery (`PluginHost`) is the truth and takes as long as all the rest of ``iii --help``. What it said is kept under
``$III_HOME/cache`` together with what it depends on: the interpreter, the folders it looks in, and the files of the
plugins. A stale listing can only ever show outdated help: running a command never relies on it.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from iii_core.errors import IIIError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from iii_core.host import PluginHost

_DISABLE: Final = "III_DISABLE_PLUGINS"
_SHAPE: Final = {"depends": list, "files": dict, "commands": dict, "warnings": list}


@dataclass(frozen=True, slots=True)
class Listing:
    """Names of plugins' commands with their help, and warnings about those that cannot be reached."""

    commands: Mapping[str, str] = field(default_factory=dict[str, str])
    warnings: Sequence[str] = ()


def plugin_listing(find_plugins: Callable[[], PluginHost]) -> Listing:
    """What plugins add to the command line; a name that two of them claim, or that the core has, is a warning."""
    path = _cache_path()
    depends = _circumstances()
    known = _read(path)
    if known is not None and known["depends"] == depends and known["files"] == _stamps(known["files"]):
        return Listing(known["commands"], known["warnings"])
    return _discover(find_plugins(), path, depends)


def _discover(plugins: PluginHost, path: Path, depends: list[Any]) -> Listing:
    from iii_core.cli.conflicts import conflicts
    from iii_core.records import Command

    found = conflicts(plugins, kinds=[Command])
    taken = {conflict.record.name for conflict in found}
    declared = [item.record for item in plugins.declared(Command)]
    commands = {item.name: item.help for item in declared if isinstance(item, Command) and item.name not in taken}
    listing = Listing(commands, list(dict.fromkeys(conflict.warning for conflict in found)))
    if all(info.status != "failed" for info in plugins.plugins):
        data = {"commands": listing.commands, "warnings": listing.warnings}
        _write(path, {"depends": depends, "files": _stamps(_plugin_files()), **data})
    return listing


def _cache_path() -> Path:
    from pathlib import Path

    from iii_core.project.locate import user_home

    try:
        return user_home(os.environ) / "cache" / "commands.json"
    except RuntimeError:  # a user without a home: nothing is ever there
        return Path(os.devnull)


def _circumstances() -> list[Any]:
    """What installing, removing or disabling a plugin changes; an installer changes the folder it installs into."""
    folders = [[place, stamp] for place, stamp in _stamps(dict.fromkeys(sys.path)).items()]
    return [sys.version, sys.prefix, os.environ.get(_DISABLE, ""), folders]


def _plugin_files() -> dict[str, Any]:
    from importlib.metadata import entry_points

    from iii_core.host import ENTRY_POINT_GROUP

    modules = (sys.modules.get(entry.module) for entry in entry_points(group=ENTRY_POINT_GROUP))
    return dict.fromkeys(str(module.__file__) for module in modules if module is not None)


def _stamps(paths: dict[str, Any]) -> dict[str, int | None]:
    """When each file or folder last changed; None where there is none."""
    found: dict[str, int | None] = {}
    for path in paths:
        try:
            found[path] = os.stat(path or ".").st_mtime_ns  # noqa: PTH116 - pathlib costs more than the call
        except OSError:
            found[path] = None
    return found


def _read(path: Path) -> dict[str, Any] | None:
    try:
        known = json.loads(path.read_bytes())
        valid = all(type(known[key]) is kind for key, kind in _SHAPE.items())
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return known if valid else None


def _write(path: Path, known: dict[str, Any]) -> None:
    """Best effort: without a cache help is merely slower."""
    from iii_core.project.files import write_atomic

    if str(path) == os.devnull:
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(path, json.dumps(known).encode(), mode=0o600)
    except (OSError, IIIError):
        return

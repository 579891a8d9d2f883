"""What is wrong between plugins that each work: names that two of them claim, or that belong to the core."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from iii_core.host import Declared, PluginHost, PluginInfo
    from iii_core.records import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """A record that cannot be used: ``trouble`` is said of its plugin, ``warning`` is said of both sides."""

    record: Record
    plugin: PluginInfo
    trouble: str
    warning: str


def conflicts(host: PluginHost, kinds: Iterable[type[Record]] | None = None) -> list[Conflict]:
    """The conflicts among the records of some kinds (all of them); none is an error until the name is used."""
    from iii_core.host import HOOK_OF_KIND
    from iii_core.records import Command

    found: list[Conflict] = []
    for kind in HOOK_OF_KIND if kinds is None else kinds:
        claims: dict[str, list[Declared]] = {}
        for declared in host.declared(kind):
            claims.setdefault(declared.record.name, []).append(declared)
        for name, claimants in claims.items():
            hidden = _why_hidden(name) if kind is Command else None
            if hidden is not None:
                found += [_hidden(claimant, hidden) for claimant in claimants]
            elif len(claimants) > 1:
                found += _claimed_twice(kind, claimants)
    return found


def _hidden(claim: Declared, why: str) -> Conflict:
    trouble = f"its command {claim.record.name!r} {why}"
    return Conflict(
        record=claim.record, plugin=claim.plugin, trouble=trouble, warning=f"plugin {claim.plugin.origin}: {trouble}"
    )


def _claimed_twice(kind: type[Record], claimants: list[Declared]) -> Iterable[Conflict]:
    origins = [claim.plugin.origin for claim in claimants]
    name = claimants[0].record.name
    count = "two" if len(origins) == 2 else str(len(origins))
    warning = f"{count} plugins declare the {kind.__name__} {name!r}: {' and '.join(origins)}"
    for claim in claimants:
        others = " and ".join(origin for origin in origins if origin != claim.plugin.origin) or "itself a second time"
        trouble = f"its {kind.__name__} {name!r} cannot be used, as it is also declared by {others}"
        yield Conflict(record=claim.record, plugin=claim.plugin, trouble=trouble, warning=warning)


def _why_hidden(name: str) -> str | None:
    """Why a plugin's command of that name cannot be reached; None if it can."""
    from iii_core import __version__
    from iii_core.cli.commands import GROUPS, is_core_command

    group, dot, rest = name.partition(".")
    if dot and (group not in GROUPS or "." in rest):
        return f"is in no group that plugins can add to, which are {', '.join(GROUPS)}"
    if is_core_command(name):
        return f"is hidden by the command of that name of iii-core {__version__}"
    return None

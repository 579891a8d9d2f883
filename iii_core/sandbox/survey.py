"""Which of the installed sandbox backends work on this machine, and which of them ``auto`` would take."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import trio

from iii_core.errors import IIIError, SandboxHostDied
from iii_core.records import ProbeResult, SandboxBackend
from iii_core.sandbox.hostclient import open_sandbox_host

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iii_core.host import PluginHost, PluginInfo
    from iii_core.records import OpenContext
    from iii_core.sandbox.host import SandboxHost

AT_ONCE: Final = 3
"""Probes that run at the same time: each may boot a virtual machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One backend: who brings it, what its probe says, and whether ``auto`` takes it."""

    record: SandboxBackend
    plugin: PluginInfo
    verdict: ProbeResult
    chosen: bool

    def as_json(self) -> dict[str, Any]:
        """As ``iii sandbox backends --json`` prints it."""
        return {
            "name": self.record.name,
            "summary": self.record.summary,
            "isolation": self.record.isolation.value,
            "strength": self.record.strength,
            "works": self.verdict.ok,
            "automatic": self.verdict.ok and self.verdict.automatic,
            "chosen": self.chosen,
            "reason": self.verdict.reason or None,
            "hint": self.verdict.hint,
            "details": dict(self.verdict.details),
            "capabilities": sorted(self.record.capabilities),
            "lacks": {name: asdict(lack) for name, lack in sorted(self.record.lacks.items())},
            "plugin": self.plugin.name,
            "distribution": self.plugin.distribution,
            "version": self.plugin.version,
        }


async def survey(
    plugins: PluginHost, context: OpenContext, settings: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Finding]:
    """Probe all installed backends in a sandbox host process, as an engine does; the strongest first.

    ``settings`` are those of each backend by name, checked (`iii_core.project.provider_settings`).

    Takes as long as the slowest probe, each being bounded by `iii_core.sandbox.host.PROBE_TIMEOUT`.

    Raises:
        PluginCollision: two plugins claim one name.
        SandboxHostDied: the sandbox host process did not come up, or died.
    """
    records = plugins.collect(SandboxBackend)
    if not records:
        return []
    verdicts: dict[str, ProbeResult] = {}
    slots = trio.Semaphore(AT_ONCE)

    async def probe(host: SandboxHost, name: str) -> None:
        async with slots:
            verdicts[name] = await _probe(host, name)

    async with open_sandbox_host(context, config=settings) as host, trio.open_nursery() as nursery:
        for name in records:
            nursery.start_soon(probe, host, name)
    return _ranked(plugins, verdicts)


async def _probe(host: SandboxHost, name: str) -> ProbeResult:
    try:
        return await host.probe(name)
    except SandboxHostDied:  # that says nothing about the backend
        raise
    except IIIError as error:
        return ProbeResult(ok=False, reason=error.message, hint=error.hint, details=error.details)


def _ranked(plugins: PluginHost, verdicts: dict[str, ProbeResult]) -> list[Finding]:
    declared = [
        (item.record, item.plugin)
        for item in plugins.declared(SandboxBackend)
        if isinstance(item.record, SandboxBackend)
    ]
    declared.sort(key=lambda pair: pair[0].strength, reverse=True)
    usable = (record.name for record, _ in declared if verdicts[record.name].ok and verdicts[record.name].automatic)
    chosen = next(usable, None)
    return [
        Finding(record=record, plugin=plugin, verdict=verdicts[record.name], chosen=record.name == chosen)
        for record, plugin in declared
    ]

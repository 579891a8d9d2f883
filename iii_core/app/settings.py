"""From config.yaml to the engine's settings: listeners and in-process workers. Pure but for the environment given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from iii_core.engine.config import EngineConfig, ListenerConfig, TlsFiles
from iii_core.errors import ConfigError, UnknownKey
from iii_core.project.block import suggest
from iii_core.project.config import DEFAULT_PORT, MANAGER, ProjectConfig
from iii_core.project.expand import expand
from iii_core.project.provider_settings import in_words, provider_settings

if TYPE_CHECKING:
    from iii_core.project.config import WorkerEntry
    from iii_core.records import InProcessWorker, Transport

# Parts of the engine itself: named in configurations of the original, always there in this one.
BUILT_IN: Final = frozenset({MANAGER, "iii-engine-functions", "iii-telemetry", "iii-observability", "configuration"})


class TlsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``tls:`` of a listener: paths of PEM files, relative to the folder of config.yaml."""

    cert: str
    key: str


class ListenerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ``config:`` of an ``iii-worker-manager`` entry (spec protocol §1.1; safe defaults of our own)."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    transport: str = "websocket"
    handshake_timeout_ms: int = 10_000
    allowed_origins: list[str] = []
    allowed_hosts: list[str] = []
    tls: TlsSettings | None = None


def engine_config(
    config: ProjectConfig,
    environ: Mapping[str, str],
    workers: Mapping[str, InProcessWorker],
    root: Path,
    transports: Mapping[str, Transport] | None = None,
) -> EngineConfig:
    """The engine's settings. Without a manager entry there is one listener on 127.0.0.1:49134.

    ``root`` is the project's folder, which relative paths are relative to; ``transports`` are those that there are.

    Raises `ConfigError` (wrong types, unknown keys, unset variables), naming worker and line.
    """
    options = provider_settings(config.transports, transports or {}, environ, what="transport")
    managers = [entry for entry in config.workers if entry.name == MANAGER]
    listeners = tuple(_listener(entry, environ, root) for entry in managers) or (ListenerConfig(port=DEFAULT_PORT),)
    listeners = tuple(replace(listener, options=options.get(listener.transport, {})) for listener in listeners)
    return EngineConfig(listeners=listeners, workers=_in_process(config, environ, workers))


def is_engine_worker(name: str, workers: Mapping[str, InProcessWorker]) -> bool:
    """Whether the engine answers to this name: a part of it, or a plugin's in-process worker."""
    return name in BUILT_IN or name in workers or any(name in record.aliases for record in workers.values())


def unknown_workers(config: ProjectConfig, workers: Mapping[str, InProcessWorker]) -> list[str]:
    """Entries that nothing here can run."""
    return [entry.name for entry in config.workers if not entry.managed and not is_engine_worker(entry.name, workers)]


def _listener(entry: WorkerEntry, environ: Mapping[str, str], root: Path) -> ListenerConfig:
    settings: ListenerSettings = _checked(entry, environ, ListenerSettings)[1]
    if not 0 <= settings.port < 65536:
        raise ConfigError(f"line {entry.line}: port of {entry.name} must be within 0 and 65535, not {settings.port}")
    return ListenerConfig(
        host=settings.host,
        port=settings.port,
        transport=settings.transport,
        allowed_origins=tuple(settings.allowed_origins),
        allowed_hosts=tuple(settings.allowed_hosts),
        handshake_timeout=settings.handshake_timeout_ms / 1000,
        tls=TlsFiles(cert=root / settings.tls.cert, key=root / settings.tls.key) if settings.tls else None,
    )


def _in_process(
    config: ProjectConfig, environ: Mapping[str, str], workers: Mapping[str, InProcessWorker]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in config.workers:
        record = next((r for r in workers.values() if entry.name == r.name or entry.name in r.aliases), None)
        if record is not None and not entry.managed:
            found[record.name] = _checked(entry, environ, record.config)[0]
    return found


def _checked(entry: WorkerEntry, environ: Mapping[str, str], kind: type[Any]) -> tuple[dict[str, Any], Any]:
    """An entry's settings, expanded: as plain data and as its type."""
    owner = f"worker {entry.name!r} (line {entry.line})"
    settings: dict[str, Any] = expand(dict(entry.config or {}), environ, owner=owner)
    known = [field.encode_name for field in msgspec.structs.fields(kind)]
    for key in settings:
        if key not in known:
            raise UnknownKey(f"{owner}: unknown key {key!r} in config", hint=suggest(key, known))
    try:
        return settings, msgspec.convert(settings, kind, strict=True)
    except msgspec.ValidationError as error:
        words, path = in_words(str(error))
        raise ConfigError(
            f"{owner}: config{path}: {words}", hint="correct that worker's config in config.yaml"
        ) from None

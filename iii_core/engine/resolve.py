"""From a configuration and the plugins' records to what an engine is to run. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from iii_core.errors import ConfigError, PluginCollision, PluginMissing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iii_core.engine.config import EngineConfig, ListenerConfig
    from iii_core.records import InProcessWorker, Transport


def wanted_listeners(config: EngineConfig) -> dict[tuple[str, str, int, int], ListenerConfig]:
    """Listeners by transport, host, port and a number that tells several with port 0 apart. Raises `ConfigError`."""
    wanted: dict[tuple[str, str, int, int], ListenerConfig] = {}
    for listener in config.listeners:
        number = 0
        while (key := (listener.transport, listener.host, listener.port, number)) in wanted:
            number += 1
            if listener.port != 0:
                raise ConfigError(f"two listeners claim {listener.host}:{listener.port}")
        wanted[key] = listener
    return wanted


def settings_of(record: InProcessWorker | Transport, given: Mapping[str, Any], where: str) -> Any:
    """Settings as the record's config type. Raises `ConfigError`."""
    try:
        return msgspec.convert(dict(given), record.config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"the settings of {where} are wrong: {error}") from error


def find_worker(records: Mapping[str, InProcessWorker], name: str) -> InProcessWorker:
    """The record of a name or alias. Raises `PluginMissing`, or `PluginCollision` for an alias of two."""
    found = [records[name]] if name in records else [record for record in records.values() if name in record.aliases]
    if not found:
        raise PluginMissing(
            f"no plugin provides the in-process worker {name!r}", hint="`iii plugins list` shows what there is"
        )
    if len(found) > 1:
        names = " and ".join(repr(record.name) for record in found)
        raise PluginCollision(f"{name!r} is an alias of the in-process workers {names}", hint="use the worker's name")
    return found[0]

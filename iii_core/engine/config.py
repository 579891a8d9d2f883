"""What an embedding program (or the project's config.yaml) asks of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from iii_core.errors import ConfigError
from iii_core.protocol.limits import EngineLimits

DEFAULT_PORT: Final = 49134


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """What a listener proves itself with, both PEM: ``cert`` is the chain, its own certificate first; ``key`` is bare.

    The files are read when the listener opens, so a renewed certificate counts from the engine's next start.
    """

    cert: Path
    key: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerConfig:
    """One trusted listener.

    Attributes:
        host: address to bind; anything but loopback makes the engine reachable for others, who are all trusted.
        port: 0 lets the system choose (`iii_core.engine.Engine.addresses` tells).
        transport: name of the transport plugin.
        allowed_origins: browser origins that may connect; none by default.
        allowed_hosts: ``Host`` names besides loopback and ``host``.
        handshake_timeout: seconds that a client has for the opening handshake.
        tls: with it the listener speaks TLS and nothing else (``wss:``).
        options: settings of the transport itself, checked by its config type.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    transport: str = "websocket"
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    handshake_timeout: float = 10.0
    tls: TlsFiles | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"the listener's port {self.port} is not between 0 and 65535")
        if not self.handshake_timeout > 0:
            raise ConfigError(f"the listener's handshake_timeout {self.handshake_timeout} is not above 0 seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What an engine runs.

    Attributes:
        listeners: may be empty: an engine without one has in-process and sandboxed workers only.
        workers: settings of in-process workers by name (or alias); a worker runs if it is named here.
        limits: what one connection may cost. Cannot change while the engine runs.
    """

    listeners: tuple[ListenerConfig, ...] = ()
    workers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    limits: EngineLimits = field(default_factory=EngineLimits)

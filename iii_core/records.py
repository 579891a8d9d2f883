"""The frozen records that hooks yield: a plugin *declares* with these, and acts through what ``open`` gives.

``open(config, context)`` is always an async context manager factory: the opened object lives as long as the scope.
``config`` names the provider's settings as a ``msgspec.Struct`` type (``forbid_unknown_fields``), so that its schema
can be read, and a user's file checked, without importing anything heavy. Creating a record must be cheap.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from iii_core.errors import PluginError

if TYPE_CHECKING:
    from iii_core.engine.inprocess import EngineClient
    from iii_core.images.port import ImageResolver
    from iii_core.sandbox.port import Capability, Isolation, Lack, SandboxDriver
    from iii_core.transport.port import MessageTransport

_NAME = re.compile(r"[a-z0-9]+(?:[-.][a-z0-9]+)*\Z")


class NoConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For providers without settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenContext:
    """What every provider is given when it is opened.

    Attributes:
        state_dir: a private folder of this provider for things that last (created on demand, mode 0700).
        runtime_dir: a short private folder for sockets and pids, gone at the next boot.
        home: ``$III_HOME`` (default ``~/.iii``): things shared by all projects of a user, such as images.
        environ: the environment to read settings from; never ``os.environ`` itself.
    """

    state_dir: Path
    runtime_dir: Path
    home: Path
    environ: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What all records share: a kebab-case name, unique within its kind."""

    name: str

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            raise PluginError(
                f"{type(self).__name__} name {self.name!r} is not kebab-case",
                hint="use lower-case letters, digits and single hyphens",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Transport(Record):
    """A way for workers to connect. ``schemes`` are the URL schemes it dials and listens for, such as ``ws``."""

    schemes: tuple[str, ...]
    config: type[msgspec.Struct] = NoConfig
    open: Callable[[Any, OpenContext], AbstractAsyncContextManager[MessageTransport]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryResolver(Record):
    """A source of workers. Of the resolvers that ``accepts`` a source, the one of highest ``priority`` gets it."""

    priority: int = 0
    accepts: Callable[[str], bool]
    config: type[msgspec.Struct] = NoConfig
    open: Callable[[Any, OpenContext], AbstractAsyncContextManager[ImageResolver]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """Whether a backend can work on this machine, why not, and what would help.

    With ``automatic=False`` it works but is used only where it is asked for by name; ``reason`` then says why.
    """

    ok: bool
    automatic: bool = True
    reason: str = ""
    hint: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxBackend(Record):
    """A way to isolate workers.

    Attributes:
        strength: orders backends for ``auto``: the strongest that probes well is taken.
        capabilities: what it can do on this machine.
        lacks: what it could do besides if something were installed or allowed here.
    """

    summary: str
    isolation: Isolation
    strength: int
    capabilities: frozenset[Capability]
    lacks: Mapping[Capability, Lack] = field(default_factory=dict["Capability", "Lack"])
    config: type[msgspec.Struct] = NoConfig
    probe: Callable[[Any, OpenContext], Awaitable[ProbeResult]]
    open: Callable[[Any, OpenContext], AbstractAsyncContextManager[SandboxDriver]]


@dataclass(frozen=True, slots=True, kw_only=True)
class InProcessWorker(Record):
    """A worker that lives inside the engine, such as ``iii-state``. ``aliases`` are further names in config.yaml."""

    aliases: tuple[str, ...] = ()
    description: str = ""
    config: type[msgspec.Struct] = NoConfig
    open: Callable[[Any, EngineClient, OpenContext], AbstractAsyncContextManager[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command(Record):
    """A subcommand of ``iii``. ``load`` imports and returns a ``typer.Typer``; it runs only when it is needed.

    A name with a dot is a command of one of the core's groups: ``sandbox.setup`` is ``iii sandbox setup``.
    """

    help: str
    load: Callable[[], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """One verdict of ``iii doctor``."""

    status: Literal["ok", "warning", "failed"]
    message: str
    hint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check(Record):
    """A row of ``iii doctor``."""

    run: Callable[[OpenContext], Awaitable[CheckResult]]


AnyRecord: TypeAlias = Transport | RegistryResolver | SandboxBackend | InProcessWorker | Command | Check

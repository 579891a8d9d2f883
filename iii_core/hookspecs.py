"""The hooks a plugin may implement, in the order in which a running program meets them.

Every hook is a plain ``def`` that yields frozen records (`iii_core.records`); an ``async def`` is refused at
registration, because pluggy never awaits one. Hooks declare and must not do I/O: they run before any event loop exists,
in ``iii --help`` too.

A plugin is a module named by an entry point of the group ``iii``::

    # pyproject.toml
    [project.entry-points.iii]
    myplugin = "iii_sandbox_mine.plugin"

    # iii_sandbox_mine/plugin.py
    from iii_core import hookimpl

    @hookimpl
    def iii_sandbox_backends():
        yield SandboxBackend(name="mine", ...)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from iii_core.records import (
        Check,
        Command,
        InProcessWorker,
        RegistryResolver,
        SandboxBackend,
        Transport,
    )

PROJECT_NAME = "iii"
hookspec = pluggy.HookspecMarker(PROJECT_NAME)
hookimpl = pluggy.HookimplMarker(PROJECT_NAME)


@hookspec
def iii_commands() -> Iterable[Command]:
    """Declare subcommands of ``iii``.

    When: at every start of the command line, before arguments are parsed.
    Called by: the CLI.
    Yield: `Command` records; ``load`` is called only when the command (or its help) is asked for. The name ``hello`` is
    ``iii hello``, and ``sandbox.setup`` is ``iii sandbox setup``.
    None means: no commands.
    Example: ``yield Command(name="hello", help="Say hello", load=lambda: import_module("hello.cli").app)``
    """
    return ()


@hookspec
def iii_registry_resolvers() -> Iterable[RegistryResolver]:
    """Declare sources of workers for ``iii worker add``.

    When: once per command that adds, starts or updates workers.
    Called by: the worker installer.
    Yield: `RegistryResolver` records; ``accepts`` must be pure and quick.
    None means: no resolvers.
    Example: ``yield RegistryResolver(name="oci", priority=10, accepts=looks_like_oci, open=open_oci)``
    """
    return ()


@hookspec
def iii_sandbox_backends() -> Iterable[SandboxBackend]:
    """Declare sandbox backends.

    When: once per engine, and in the sandbox host process that opens them.
    Called by: the worker manager and the sandbox host.
    Yield: `SandboxBackend` records; ``probe`` decides at run time whether this machine can use it.
    None means: no backends.
    Example: ``yield SandboxBackend(name="mine", summary="…", isolation=Isolation.NAMESPACES, strength=10, …)``
    """
    return ()


@hookspec
def iii_transports() -> Iterable[Transport]:
    """Declare transports over which workers connect.

    When: once per engine, before its listeners open; once per command that dials an engine.
    Called by: the engine and the CLI.
    Yield: `Transport` records.
    None means: no transports.
    Example: ``yield Transport(name="websocket", schemes=("ws", "wss"), config=Settings, open=open_websocket)``
    """
    return ()


@hookspec
def iii_workers() -> Iterable[InProcessWorker]:
    """Declare workers that live inside the engine.

    When: once per engine, after its core functions exist and before its listeners open.
    Called by: the engine.
    Yield: `InProcessWorker` records; one is opened if config.yaml names it.
    None means: no workers.
    Example: ``yield InProcessWorker(name="iii-state", aliases=("state",), config=Settings, open=open_state)``
    """
    return ()


@hookspec
def iii_checks() -> Iterable[Check]:
    """Declare rows of ``iii doctor``.

    When: when the user runs ``iii doctor``.
    Called by: the CLI.
    Yield: `Check` records.
    None means: no checks.
    Example: ``yield Check(name="skopeo", run=check_skopeo)``
    """
    return ()

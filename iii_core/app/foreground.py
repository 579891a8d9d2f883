"""``iii`` without a subcommand: the engine of a project in the foreground, until it is asked to stop."""

from __future__ import annotations

import logging
import signal
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import trio

from iii_core.app.application import open_application
from iii_core.app.watch import FileWatch
from iii_core.errors import IIIError, leading_error
from iii_core.link.accept import raise_descriptor_limit

if TYPE_CHECKING:
    from iii_core.app.application import Application
    from iii_core.host import PluginHost
    from iii_core.project.locate import Project

_log = logging.getLogger(__name__)


def run_foreground(project: Project, plugins: PluginHost) -> int:
    """Run the project's engine until SIGINT, SIGTERM or SIGHUP; a second one ends it at once. Returns the exit code.

    SIGHUP, which is the end of the terminal, stays ignored where it is (nohup(1)).

    Raises:
        IIIError: it could not be started (see `iii_core.app.application.open_application`).
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    raise_descriptor_limit()
    return trio.run(_run, project, plugins)


async def _run(project: Project, plugins: PluginHost) -> int:
    hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, *hangup) as signals:
        stop = trio.Event()
        forced = False

        async def watch_signals(scope: trio.CancelScope) -> None:
            nonlocal forced
            async for _ in signals:
                if stop.is_set():
                    forced = True
                    scope.cancel()
                stop.set()

        files = (project.config_path.name, project.lock_path.name)
        async with trio.open_nursery() as root:
            root.start_soon(watch_signals, root.cancel_scope)
            with closing(FileWatch(project.root, files)) as watch:  # before they are read: no change is missed
                await _serve(project, plugins, watch, stop)
            root.cancel_scope.cancel()
        return 1 if forced else 0


async def _serve(project: Project, plugins: PluginHost, watch: FileWatch, stop: trio.Event) -> None:
    async with open_application(project, plugins) as application, trio.open_nursery() as nursery:
        nursery.start_soon(_reload_on_change, application, watch)
        _announce(application, plugins)
        await stop.wait()
        _say("stopping")
        nursery.cancel_scope.cancel()


async def _reload_on_change(application: Application, watch: FileWatch) -> None:
    while True:
        await watch.changed()
        await _reload(application)


async def _reload(application: Application) -> None:
    before = application.config, application.lock  # what a command of ours changes is taken up by the command
    try:
        await application.reload()
    except (IIIError, ExceptionGroup) as error:
        leader = leading_error(error)
        if not isinstance(leader, IIIError):
            raise
        _say(f"config.yaml changed but is not used: [{leader.code}] {leader.message}", leader.hint)
    else:
        if (application.config, application.lock) != before:
            _say("config.yaml changed and is in force")


def _announce(application: Application, plugins: PluginHost) -> None:
    for info in plugins.plugins:
        if info.status == "failed":
            _say(f"plugin {info.origin} is left out: {info.error}", "see 'iii plugins list'")
    for address in application.engine.addresses:
        scheme = "wss" if address.secure else "ws"
        _say(f"engine ready on {scheme}://{address.host}:{address.port} (project {application.project.root})")
    if not application.config.workers:
        _say("no workers yet", "in another terminal, add one with 'iii worker add'; Ctrl-C here stops the engine")


def _say(text: str, hint: str | None = None) -> None:
    print(f"iii: {text}" + (f"\n     hint: {hint}" if hint else ""), file=sys.stderr, flush=True)

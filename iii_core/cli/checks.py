"""The core's own rows of ``iii doctor``: Python, the project, its engine, folders, plugins, sandboxes."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from iii_core.app.declared import Providers, load_declared
from iii_core.cli.conflicts import conflicts
from iii_core.control.client import request
from iii_core.errors import ConfigError, PluginCollision
from iii_core.host import HOOK_OF_KIND
from iii_core.project.locate import read_record, runtime_dir
from iii_core.records import Check, CheckResult
from iii_core.sandbox.survey import survey

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from iii_core.host import PluginHost
    from iii_core.project.locate import Project
    from iii_core.records import OpenContext

OLDEST_PYTHON: Final = (3, 11)
SPACE_WANTED: Final = 2 << 30
SPACE_NEEDED: Final = 200 << 20
_GIB: Final = 1 << 30


def core_checks(project: Project, plugins: PluginHost) -> Sequence[Check]:
    """The checks, in the order in which people meet what they are about."""
    providers = _providers(plugins)
    return (
        _blocking("python", _python),
        Check(name="plugins", run=partial(_plugins, plugins)),
        _blocking("default-plugins", _default_plugins),
        _blocking("home", partial(_home, project)),
        _blocking("runtime-folder", partial(_runtime_folder, project)),
        _blocking("config", partial(_config, project, providers)),
        _blocking("engine", partial(_engine, project)),
        Check(name="sandbox", run=partial(_sandbox, project, plugins, providers)),
    )


def _blocking(name: str, look: Callable[[], CheckResult]) -> Check:
    async def run(_: OpenContext) -> CheckResult:
        return await trio.to_thread.run_sync(look, abandon_on_cancel=True)

    return Check(name=name, run=run)


def _ok(message: str) -> CheckResult:
    return CheckResult(status="ok", message=message)


def _warning(message: str, hint: str | None = None) -> CheckResult:
    return CheckResult(status="warning", message=message, hint=hint)


def _failed(message: str, hint: str | None = None) -> CheckResult:
    return CheckResult(status="failed", message=message, hint=hint)


def _python() -> CheckResult:
    here = f"Python {platform.python_version()} on {platform.system()} {platform.release()}"
    if sys.version_info < OLDEST_PYTHON:
        return _failed(here, f"install Python {'.'.join(map(str, OLDEST_PYTHON))} or newer")
    if sys.platform != "linux":
        return _failed(here, "sandboxes need Linux: run iii there, or in a virtual machine")
    return _ok(here)


async def _plugins(plugins: PluginHost, _: OpenContext) -> CheckResult:
    await trio.lowlevel.checkpoint()  # no thread: a plugin host belongs to one
    for kind in HOOK_OF_KIND:  # a hook that raises shows only when it is called
        plugins.declared(kind)
    failed = [f"{info.origin}: {info.error}" for info in plugins.plugins if info.status == "failed"]
    if failed:
        broken = " ".join(sorted({info.distribution for info in plugins.plugins if info.status == "failed"}))
        return _failed("; ".join(failed), f"upgrade or uninstall them: pip install --upgrade {broken}")
    if found := list(dict.fromkeys(conflict.warning for conflict in conflicts(plugins))):
        return _warning("; ".join(found), "uninstall one of them, or name one in III_DISABLE_PLUGINS")
    loaded = [info for info in plugins.plugins if info.status == "loaded"]
    disabled = len(plugins.plugins) - len(loaded)
    return _ok(f"{len(loaded)} loaded" + (f", {disabled} disabled" if disabled else ""))


def _default_plugins() -> CheckResult:
    from importlib.metadata import PackageNotFoundError, distribution, requires

    lines = [line.replace("'", '"') for line in requires("iii-core") or ()]
    wanted = [line.partition(";")[0].strip() for line in lines if 'extra == "default"' in line]
    missing: list[str] = []
    for requirement in wanted:
        name = requirement.partition("=")[0].strip()
        try:
            distribution(name)
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return _warning(f"not installed: {', '.join(missing)}", 'pip install "iii-core[default]"')
    return _ok(f"all {len(wanted)} that most people want are installed")


def _home(project: Project) -> CheckResult:
    """Images and kernels go to ``$III_HOME``: may it be written, and is there room?"""
    place = next(path for path in (project.home, *project.home.parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return _failed(f"{place} may not be written, where images are kept", "set III_HOME to a folder of yours")
    free = shutil.disk_usage(place).free
    room = f"{free / _GIB:.1f} GiB free in {project.home}"
    if free < SPACE_WANTED:
        lacking = _failed if free < SPACE_NEEDED else _warning
        return lacking(room, "free some space, or set III_HOME to a folder on a larger disk")
    return _ok(room)


def _runtime_folder(project: Project) -> CheckResult:
    return _ok(f"sockets go to {runtime_dir(project)}")


def _config(project: Project, providers: Providers | None) -> CheckResult:
    if not project.config_path.exists():
        return _warning(f"there is no {project.config_path}", "'iii' creates it, unless the project is elsewhere")
    if providers is None:
        return _warning("not checked, as plugins claim the same names", "see 'iii plugins list'")
    declared = load_declared(project, providers)
    problems = [worker.problem for worker in declared.workers.values() if worker.problem is not None]
    if problems:
        return _warning("; ".join(f"[{one.code}] {one.message}" for one in problems), problems[0].hint)
    return _ok(f"{project.config_path} is valid")


def _providers(plugins: PluginHost) -> Providers | None:
    """None where plugins collide, which is a row of its own."""
    try:
        return Providers.of(plugins)
    except PluginCollision:
        return None


def _engine(project: Project) -> CheckResult:
    if read_record(project) is None:
        return _warning("no engine of this project runs", "start it with 'iii'")
    status = request(project, "engine.status")
    where = ", ".join(f"{at['host']}:{at['port']}" for at in status["listeners"])
    return _ok(f"version {status['version']} runs with pid {status['pid']} and listens on {where or 'nothing'}")


async def _sandbox(
    project: Project, plugins: PluginHost, providers: Providers | None, context: OpenContext
) -> CheckResult:
    """Whether ``auto`` finds a backend, tried as an engine does."""
    settings = None
    if providers is not None and project.config_path.exists():
        with suppress(ConfigError):  # a row of its own
            settings = (await trio.to_thread.run_sync(load_declared, project, providers)).backends
    found = await survey(plugins, context, settings)
    if not found:
        return _failed("no sandbox backend is installed", "pip install iii-sandbox-bubblewrap")
    chosen = next((finding for finding in found if finding.chosen), None)
    if chosen is not None:
        return _ok(f"{chosen.record.name} works ({chosen.record.isolation.value})")
    reasons = "; ".join(f"{finding.record.name}: {finding.verdict.reason}" for finding in found)
    hints = list(dict.fromkeys(finding.verdict.hint for finding in found if finding.verdict.hint))
    return _failed(f"none works by itself: {reasons}", "; ".join(hints) or "see 'iii sandbox backends'")

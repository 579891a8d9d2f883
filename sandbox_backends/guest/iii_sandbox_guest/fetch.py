"""Fetching a kernel: Debian's own for virtual machines, by the distribution's package tools, as any user.

``apt-get download`` verifies what it downloads and writes to the current folder alone; ``dpkg-deb -x`` unpacks it
there. Nothing is installed on this machine.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import trio

from iii_core.errors import BackendUnavailable
from iii_sandbox_guest.kernel import Kernel, kernels_dir, open_kernel
from iii_sandbox_guest.vmlinux import extract_vmlinux

DOWNLOAD_SECONDS: Final = 900.0
TOOL_SECONDS: Final = 120.0
ABANDONED_SECONDS: Final = 24 * 3600
_TEMPORARY: Final = ".fetch-"
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_HINT: Final = "name a kernel in the sandbox backend's settings (kernel: /path/to/vmlinuz)"
_TOOLS: Final = {"apt-get": "apt", "apt-cache": "apt", "dpkg": "dpkg", "dpkg-deb": "dpkg", "depmod": "kmod"}


async def fetch_kernel(home: Path, *, progress: Callable[[str], None] = lambda _: None) -> Kernel:
    """Fetch the newest kernel that Debian has for virtual machines, unless it is there; about 30 MB.

    Several may do so at the same time: each works in a folder of its own, and the first to be done wins. When it is
    cancelled or fails, nothing is left.

    Args:
        home: ``$III_HOME``; the kernel is put below ``kernels/``.
        progress: told in words what is being done.

    Raises `BackendUnavailable` where that kernel cannot be had this way.
    """
    for tool, package in _TOOLS.items():
        if shutil.which(tool, path=_PATH) is None:
            raise BackendUnavailable(
                f"a kernel can be fetched on Debian only: there is no {tool} (of Debian's {package}) here", hint=_HINT
            )
    folder = kernels_dir(home)
    folder.mkdir(parents=True, exist_ok=True)
    await trio.to_thread.run_sync(_remove_abandoned, folder)
    work = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=folder))
    try:
        architecture = (await _run(work, "dpkg", "--print-architecture")).strip()
        apt = _Apt(work, progress)
        package = await apt.concrete_package(f"linux-image-cloud-{architecture}")
        release = package.removeprefix("linux-image-")
        with contextlib.suppress(BackendUnavailable):
            return open_kernel(folder / release)
        progress(f"downloading {package}")
        archive = await apt.download(package)
        progress(f"unpacking {archive.name}")
        made = await _unpack(work, archive, release)
        return await trio.to_thread.run_sync(partial(_publish, made, folder / release))
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(partial(shutil.rmtree, work, ignore_errors=True))


class _Apt:
    """apt in a folder of its own where the machine's lists of packages are missing or stale."""

    def __init__(self, work: Path, progress: Callable[[str], None]) -> None:
        self._work = work
        self._progress = progress
        self._options: tuple[str, ...] = ()

    async def concrete_package(self, name: str) -> str:
        """The package of a certain version that a meta package stands for."""
        for _ in self._attempts():
            with contextlib.suppress(_ToolFailed):
                record = await _run(self._work, "apt-cache", *self._options, "show", "--no-all-versions", name)
                depends = re.search(r"^Depends:.*?(linux-image-[0-9][\w.+-]*)", record, re.MULTILINE)
                if depends is not None:
                    return depends[1]
            await self._update()
        raise BackendUnavailable(
            f"the package sources of this machine have no {name}", hint=f"add Debian's to them, or {_HINT}"
        )

    async def download(self, package: str) -> Path:
        """Download it into the working folder."""
        for last in self._attempts():
            try:
                await _run(self._work, "apt-get", *self._options, "download", package, timeout=DOWNLOAD_SECONDS)
                return next(self._work.glob("*.deb"))
            except _ToolFailed as error:
                if last:
                    raise BackendUnavailable(
                        f"downloading {package} failed: {error}", hint="is the network up? Else " + _HINT
                    ) from error
            await self._update()
        raise AssertionError

    def _attempts(self) -> tuple[bool, ...]:
        """Whether each is the last: with the machine's own lists there may be a second one, with fresh ones."""
        return (True,) if self._options else (False, True)

    async def _update(self) -> None:
        if self._options:
            return
        self._progress("reading the lists of packages")
        for name in ("lists/partial", "cache/archives/partial"):
            (self._work / name).mkdir(parents=True)
        self._options = (f"-oDir::State::lists={self._work}/lists", f"-oDir::Cache={self._work}/cache")
        try:
            await _run(self._work, "apt-get", *self._options, "update", timeout=DOWNLOAD_SECONDS)
        except _ToolFailed as error:
            raise BackendUnavailable(
                f"the lists of packages cannot be had: {error}", hint="is the network up? Else " + _HINT
            ) from error


async def _unpack(work: Path, archive: Path, release: str) -> Path:
    """A folder as `kernels_dir` holds."""
    tree, made = work / "tree", work / "made"
    await _run(work, "dpkg-deb", "-x", str(archive), str(tree))
    if not (tree / "lib/modules" / release).is_dir() and (tree / "usr/lib/modules" / release).is_dir():
        (tree / "lib").mkdir(exist_ok=True)
        (tree / "usr/lib/modules").rename(tree / "lib/modules")
    await _run(work, "depmod", "-b", str(tree), release)
    made.mkdir()
    (tree / "lib/modules" / release).rename(made / "modules")
    for name in ("vmlinuz", "config"):
        (tree / "boot" / f"{name}-{release}").rename(made / name)
    await trio.to_thread.run_sync(_write_vmlinux, made)
    return made


def _write_vmlinux(made: Path) -> None:
    vmlinux = extract_vmlinux((made / "vmlinuz").read_bytes())
    if vmlinux is not None:
        (made / "vmlinux").write_bytes(vmlinux)
    for folder, _, _ in os.walk(made):
        Path(folder).chmod(0o755)
    os.sync()


def _publish(made: Path, place: Path) -> Kernel:
    with contextlib.suppress(OSError):  # somebody else was first
        made.rename(place)
    return open_kernel(place)


def _remove_abandoned(folder: Path) -> None:
    """What runs that were killed have left."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


class _ToolFailed(Exception):
    """What a program said last."""


async def _run(folder: Path, *argv: str, timeout: float = TOOL_SECONDS) -> str:
    """Run a program to its end and give its output."""
    environ = {**os.environ, "LC_ALL": "C", "PATH": _PATH, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        with trio.fail_after(timeout):
            done = await trio.run_process(
                argv,
                cwd=folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
    except trio.TooSlowError:
        raise _ToolFailed(f"{argv[0]} took longer than {timeout:.0f} s") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise _ToolFailed(f"{argv[0]}: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout.decode(errors="replace")

"""Rows of ``iii doctor``: what bubblewrap sandboxes need of this machine.

None of them is ever ``failed``: another backend may work. Whether any does is a row of the core.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from iii_core.records import CheckResult
from iii_sandbox_bubblewrap.keeper.identity import in_first_user_namespace
from iii_sandbox_bubblewrap.remedies import namespace_remedy

if TYPE_CHECKING:
    from iii_core.records import OpenContext

TIMEOUT: Final = 20.0
FUSE: Final = Path("/dev/fuse")
SUBORDINATE: Final = (Path("/etc/subuid"), Path("/etc/subgid"))
NOT_FOR_ROOT: Final = "not needed by root"


async def check_bwrap(context: OpenContext) -> CheckResult:
    """The program."""
    path = _which(context, "bwrap")
    if path is None:
        return _warning("bwrap is not installed", "apt install bubblewrap")
    status, said = await _run(path, "--version")
    return _ok(f"{path}, {said}") if status == 0 else _warning(f"{path} does not run: {said}", "apt install bubblewrap")


async def check_namespaces(context: OpenContext) -> CheckResult:
    """Whether this user may make namespaces, tried out."""
    path = _which(context, "unshare")
    if path is None:
        return _warning("unshare is not installed", "apt install util-linux")
    status, said = await _run(path, "--user", "--map-root-user", "--mount", "--pid", "--net", "--fork", "true")
    return _ok("can be made") if status == 0 else _warning(f"cannot be made: {said}", namespace_remedy())


async def check_squashfuse(context: OpenContext) -> CheckResult:
    """How ordinary users mount images."""
    await trio.lowlevel.checkpoint()
    if _mounts_itself():
        return _ok(NOT_FOR_ROOT)
    path = _which(context, "squashfuse_ll") or _which(context, "squashfuse")
    return _ok(path) if path else _warning("squashfuse is not installed", "apt install squashfuse")


async def check_fuse(_: OpenContext) -> CheckResult:
    """What squashfuse needs of the kernel."""
    await trio.lowlevel.checkpoint()
    if _mounts_itself():
        return _ok(NOT_FOR_ROOT)
    if not FUSE.exists():
        return _warning(f"there is no {FUSE}", "as root: modprobe fuse")
    if not os.access(FUSE, os.R_OK | os.W_OK):
        return _warning(f"{FUSE} may not be opened", f"as root: chmod 666 {FUSE}")
    return _ok(f"{FUSE} may be opened")


async def check_subordinate_ids(context: OpenContext) -> CheckResult:
    """Without them all users inside are one."""
    await trio.lowlevel.checkpoint()
    if _mounts_itself():
        return _ok(NOT_FOR_ROOT)
    lacking = "images whose programs run as several users have one user only"
    if _which(context, "newuidmap") is None:
        return _warning(f"newuidmap is not installed: {lacking}", "apt install uidmap")
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return _warning(f"the user {os.geteuid()} is in no list of users, so it has none: {lacking}")
    without = [str(path) for path in SUBORDINATE if not _has_line(path, user)]
    if without:
        hint = f"as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
        return _warning(f"{user} has none in {' and '.join(without)}: {lacking}", hint)
    return _ok(f"{user} has some")


def _mounts_itself() -> bool:
    """As `iii_sandbox_bubblewrap.probe` sees it."""
    return os.geteuid() == 0 and in_first_user_namespace()


def _has_line(path: Path, user: str) -> bool:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(line.partition(":")[0] in (user, str(os.geteuid())) for line in lines)


def _which(context: OpenContext, program: str) -> str | None:
    return shutil.which(program, path=context.environ.get("PATH"))


async def _run(*command: str) -> tuple[int, str]:
    """Its exit code, and the last line of what it said."""
    try:
        with trio.fail_after(TIMEOUT):
            done = await trio.run_process(command, capture_stdout=True, stderr=subprocess.STDOUT, check=False)
    except OSError as error:
        return 1, error.strerror or repr(error)
    except trio.TooSlowError:
        return 1, f"it did not end within {TIMEOUT:g} s"
    said = done.stdout.decode(errors="replace").strip().splitlines()
    return done.returncode, said[-1] if said else f"it ended with {done.returncode}"


def _ok(message: str) -> CheckResult:
    return CheckResult(status="ok", message=message)


def _warning(message: str, hint: str | None = None) -> CheckResult:
    return CheckResult(status="warning", message=message, hint=hint)

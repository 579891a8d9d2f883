"""Rows of ``iii doctor``: the programs by which images are fetched and made into root images."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Final

import trio

from iii_core.records import CheckResult

if TYPE_CHECKING:
    from iii_core.records import OpenContext

OLDEST_SKOPEO: Final = (1, 9)
OLDEST_SQFSTAR: Final = (4, 5)
TIMEOUT: Final = 20.0
_VERSION = re.compile(rb"version v?(\d+)\.(\d+)(?:\.\d+)?")


async def check_skopeo(context: OpenContext) -> CheckResult:
    """skopeo asks registries."""
    return await _check(context, "skopeo", "--version", OLDEST_SKOPEO, "apt install skopeo")


async def check_sqfstar(context: OpenContext) -> CheckResult:
    """sqfstar makes root images out of layers."""
    return await _check(context, "sqfstar", "-version", OLDEST_SQFSTAR, "apt install squashfs-tools")


async def _check(context: OpenContext, program: str, option: str, oldest: tuple[int, int], install: str) -> CheckResult:
    wanted = ".".join(map(str, oldest))
    path = shutil.which(program, path=context.environ.get("PATH"))
    if path is None:
        return CheckResult(
            status="failed", message=f"{program} is not installed: no image can be fetched", hint=install
        )
    try:
        with trio.fail_after(TIMEOUT):
            done = await trio.run_process([path, option], capture_stdout=True, stderr=subprocess.STDOUT, check=False)
    except (OSError, trio.TooSlowError) as error:
        why = error.strerror if isinstance(error, OSError) else f"no answer within {TIMEOUT:g} s"
        return CheckResult(status="failed", message=f"{path} does not run: {why}", hint=install)
    found = _VERSION.search(done.stdout)
    if found is None:
        return CheckResult(status="warning", message=f"{path} does not tell its version; {wanted} is needed")
    version = f"{path}, version {found[0].split()[-1].decode()}"
    if (int(found[1]), int(found[2])) < oldest:
        return CheckResult(status="failed", message=f"{version}: too old", hint=f"install {program} {wanted} or newer")
    return CheckResult(status="ok", message=version)

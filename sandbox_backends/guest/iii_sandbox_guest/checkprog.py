"""What the sandbox conformance kit runs inside, as an image of one program, made without a network or a registry."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from iii_core.errors import BackendUnavailable, SpawnError
from iii_core.sandbox.port import RootImage
from iii_core.testing.sandbox_harness import Commands

INSIDE: Final = "/bin/checkprog"
TIMEOUT: Final = 60.0

COMMANDS: Final = Commands(
    write=lambda path, text: (INSIDE, "write", path, text),
    read=lambda path: (INSIDE, "read", path),
    user_id=(INSIDE, "id"),
    allocate=lambda mib: (INSIDE, "allocate", str(mib)),
    fork=lambda count: (INSIDE, "fork", str(count)),
    connect=lambda address, port: (INSIDE, "connect", address, str(port)),
    fill=lambda path, mib: (INSIDE, "fill", path, str(mib)),
    sleep=lambda seconds: (INSIDE, "sleep", str(seconds)),
    random=(INSIDE, "read", "/proc/sys/kernel/random/uuid"),
    clock=(INSIDE, "clock"),
)
"""For `iii_core.testing.sandbox_harness.SandboxesUnderTest`."""


def checkprog_path() -> Path:
    """The static program. Raises `BackendUnavailable` if this installation was made without it."""
    path = Path(__file__).parent / "bin" / "checkprog"
    if not path.is_file():
        raise BackendUnavailable(
            f"the program that checks run is missing at {path}",
            hint="reinstall iii-sandbox-guest; from a work tree: tools/setup.sh base",
        )
    return path


def make_check_image(path: Path) -> RootImage:
    """Write a squashfs image that holds the program alone, with an owner of 0. Blocks for a moment.

    Raises `SpawnError` where mksquashfs is missing or fails, `BackendUnavailable`.
    """
    program = checkprog_path()
    with tempfile.TemporaryDirectory(prefix="image-", dir=path.parent) as name:
        root = Path(name)
        root.chmod(0o755)
        inside = root / INSIDE.lstrip("/")
        inside.parent.mkdir(mode=0o755)
        shutil.copy(program, inside)
        inside.chmod(0o755)
        command = ["mksquashfs", name, str(path), "-all-root", "-comp", "lz4", "-quiet", "-no-progress", "-noappend"]
        try:
            done = subprocess.run(
                command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT
            )
        except FileNotFoundError:
            raise SpawnError("mksquashfs is not installed", hint="apt install squashfs-tools") from None
        except subprocess.TimeoutExpired:
            raise SpawnError(f"mksquashfs did not end within {TIMEOUT:g} s", hint="is the disk working?") from None
    if done.returncode != 0:
        raise SpawnError(f"mksquashfs failed: {done.stderr.strip()[-1000:]}")
    return RootImage(path=path, format="squashfs", digest="sha256:" + "0" * 64)

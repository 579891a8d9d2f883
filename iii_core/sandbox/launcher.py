"""What is particular to a sandbox backend: a `Launcher`, of which `open_launched` makes a driver."""

from __future__ import annotations

import re
import shutil
from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import trio

from iii_core.errors import ImageError, SandboxError, SandboxRefused

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from iii_core.sandbox.console import Console
    from iii_core.sandbox.port import Capability, Limits, SandboxSpec

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
_HOSTNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,63}\Z")


class LaunchFailed(Exception):
    """A launch ended before there was a link; ``str()`` says how (``"exit 1"``). Raised by launchers."""


class Boot(ABC):
    """A launched sandbox, until nothing of it is left.

    Attributes:
        link: our end of the byte stream to the agent.
        pid: the launcher's or VMM's process id.
        ended: set once nothing of it is left but its writable layer and console; `exit` then says how it ended.
        exit: ``"exit 0"``, ``"signal 9"``.
    """

    link: socket.socket
    pid: int | None
    ended: trio.Event
    exit: str

    @abstractmethod
    async def kill(self) -> None:
        """End it now and return once `ended` is set; may be called at any time, by several tasks.

        Raises `SandboxError` if it cannot be ended. Called shielded, so it must bound itself.
        """


class Launcher(ABC):
    """What is particular to a backend."""

    name: ClassVar[str]
    capabilities: ClassVar[frozenset[Capability]]
    formats: ClassVar[frozenset[str]] = frozenset({"squashfs"})
    boot_timeout: float = 20.0

    @abstractmethod
    async def launch(self, spec: SandboxSpec, console: Console) -> Boot:
        """Start one sandbox; return when there is a link. If it raises or is cancelled, nothing is left.

        Bounded by `boot_timeout` from outside. What the sandbox says goes to ``console`` (`Console.take`, in a task
        that outlives this call). Raises `LaunchFailed`, or any `SandboxError`.
        """

    def check(self, spec: SandboxSpec) -> None:  # noqa: B027  # most have nothing to add
        """Raise `SandboxError` for a spec that can never be launched."""

    async def prepare(self, spec: SandboxSpec) -> None:
        """Make what the writable layer needs; cancelled or failed, it leaves what `remove` can delete."""
        await trio.lowlevel.checkpoint()
        spec.writable_dir.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def remove(self, folder: Path) -> None:
        """Delete a writable layer. Never abandoned: a thread that goes on would meet the next `prepare`."""
        await trio.to_thread.run_sync(partial(shutil.rmtree, folder, ignore_errors=True))

    async def release(self, image: Path) -> None:  # noqa: B027  # most hold nothing
        """No sandbox uses that root image any more."""

    def remedy(self, said: str) -> str | None:
        """What would help against a boot that failed; ``said`` is how it ended, and what its console's end says."""
        return None

    def unenforced(self, spec: SandboxSpec) -> tuple[str, ...]:
        """See `SandboxState.unenforced`."""
        return ()

    def notes(self, spec: SandboxSpec) -> tuple[str, ...]:
        """See `SandboxState.notes`."""
        return ()

    def not_saveable(self, spec: SandboxSpec) -> str | None:
        """See `SandboxState.not_saveable`."""
        return None

    def single_user(self, spec: SandboxSpec) -> bool:
        """See `SandboxState.single_user`."""
        return False


def check_spec(spec: SandboxSpec) -> None:
    """Raise `SandboxError` or `ImageError` for what no backend could boot: bad ids, names, limits, no image."""
    if not _ID.match(spec.id):
        raise SandboxError(
            f"{spec.id!r} is no sandbox id", hint="1 to 63 lower-case letters, digits and hyphens, no hyphen first"
        )
    if not _HOSTNAME.match(spec.hostname):
        raise SandboxError(f"{spec.hostname!r} is no host name", hint="letters, digits, hyphens and dots")
    if not spec.root.path.is_file():
        raise ImageError(f"the image {spec.root.path} does not exist", hint="fetch the image again")
    check_limits(spec.limits)


def check_limits(limits: Limits) -> None:
    """Raise `SandboxRefused` for limits outside the port's ranges."""
    for name, value, least, most, unit in (
        ("cpus", limits.cpus, 0.1, 1024, ""),
        ("memory", limits.memory_mib, 16, 1 << 30, " (MiB)"),
        ("disk", limits.disk_mib, 16, 1 << 30, " (MiB)"),
        ("pids", limits.pids, 2, 1 << 22, ""),  # PID_MAX_LIMIT, Linux
    ):
        if value is not None and not least <= value <= most:  # so that NaN is refused too
            raise SandboxRefused(
                f"a sandbox cannot have a limit of {name} {value:g}",
                hint=f"{name} may be {least:g} to {most}{unit}",
                details={"limit": name, "least": least, "most": most},
            )

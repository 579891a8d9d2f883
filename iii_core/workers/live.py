"""The sandbox of one run: created, booted or restored, saved, and taken down whatever happens."""

from __future__ import annotations

import os
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from iii_core.errors import LinkClosed, LinkSilent, SandboxDied, SandboxError, SandboxHostDied, UnsupportedOperation
from iii_core.sandbox.mounts import TARGET_REMEDY, TARGET_TAKEN
from iii_core.sandbox.port import Snapshots

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from iii_core.sandbox.port import SandboxDriver, SandboxSpec, SandboxState

POWER_OFF_GRACE: Final = 2.0
CLEANUP_LIMIT: Final = 15.0
CONSOLE_TAIL: Final = 4096
_CANNOT_BOOT: Final = re.compile(r"^iii-agent: (cannot boot: .{1,400})", re.MULTILINE)
"""``machine_fail`` of the guest agent."""


class LiveSandbox:
    """A sandbox that runs. ``restored`` says whether it goes on from a saved state."""

    def __init__(self, driver: SandboxDriver, sandbox_id: str, *, restored: bool) -> None:
        self._driver = driver
        self._id = sandbox_id
        self.restored = restored

    async def state(self) -> SandboxState:
        """See `SandboxDriver.state`."""
        return await self._driver.state(self._id)

    async def link(self) -> trio.SocketStream:
        """The stream to the agent, for its one taker."""
        return trio.SocketStream(trio.socket.from_stdlib_socket(await self._driver.link(self._id)))

    async def next_link(self) -> trio.SocketStream | None:
        """The stream that came in the place of the one taken, or None if that was never broken."""
        try:
            return await self.link()
        except SandboxHostDied:
            raise
        except SandboxError:
            return None

    async def save(self, folder: Path) -> None:
        """See `Snapshots.save`."""
        await _snapshots(self._driver).save(self._id, folder)


@asynccontextmanager
async def open_live(
    driver: SandboxDriver, spec: SandboxSpec, worker: str, *, saved: Path | None, note: Callable[[str], None]
) -> AsyncGenerator[LiveSandbox]:
    """Boot a sandbox, from a saved state where there is one that can be used; at the end it is gone, its layer is kept.

    ``note`` is told of what does not go as it should. `LinkClosed` out of the block is taken for the sandbox's end.

    Raises:
        SandboxDied: it ended by itself, or does not answer any more.
        SandboxError: it cannot be booted.
    """
    console_start = _size(spec.console)
    await driver.create(spec)
    try:
        restored = saved is not None and await _restore(driver, spec.id, saved, note)
        if not restored:
            await driver.start(spec.id)
        yield LiveSandbox(driver, spec.id, restored=restored)
    except LinkClosed as error:
        raise await _death(driver, spec, worker, console_start, error) from error
    finally:
        with trio.move_on_after(CLEANUP_LIMIT, shield=True) as scope:
            await driver.stop(spec.id, grace=POWER_OFF_GRACE)
            await driver.destroy(spec.id, keep_writable=True)
        if scope.cancelled_caught:
            note("the sandbox could not be taken down in time")


def _snapshots(driver: SandboxDriver) -> Snapshots:
    if not isinstance(driver, Snapshots):
        raise UnsupportedOperation("this sandbox backend has no snapshots")
    return driver


async def _restore(driver: SandboxDriver, sandbox_id: str, saved: Path, note: Callable[[str], None]) -> bool:
    try:
        await _snapshots(driver).restore(sandbox_id, saved)
    except SandboxHostDied:
        raise
    except SandboxError as error:
        note(f"not started from its snapshot, but afresh: [{error.code}] {error.message}")
        return False
    return True


async def _death(
    driver: SandboxDriver, spec: SandboxSpec, worker: str, console_start: int, why: LinkClosed
) -> SandboxDied:
    """Why the link broke, with what the sandbox last said.

    The link may end a moment before the sandbox does; one that stays without its link is of no use and is killed.
    """
    await driver.stop(spec.id, grace=POWER_OFF_GRACE)
    ended = (await driver.state(spec.id)).exit or "unknown"
    silent = isinstance(why, LinkSilent)
    console = _tail_since(spec.console, console_start)
    reason = _agents_reason(console)
    return SandboxDied(
        f"the sandbox of worker {worker!r} "
        + ("did not answer any more, and was ended" if silent else f"ended by itself ({ended})")
        + (f": {reason}" if reason else ""),
        hint=TARGET_REMEDY if TARGET_TAKEN in reason else f"see 'iii worker logs {worker} --previous'",
        details={"exit": "frozen" if silent else ended, "console": console},
    )


def _agents_reason(console: str) -> str:
    """Why the agent of a machine could not boot it, by its own words; empty if it did not say.

    A machine has its link before that, so it is no boot that failed.
    """
    said = _CANNOT_BOOT.findall(console)
    return "".join(character for character in said[-1] if character.isprintable()) if said else ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _tail_since(path: Path, start: int) -> str:
    """What was written after offset ``start``, at most its last `CONSOLE_TAIL` bytes.

    A backend may cut the beginning off a file that grows too large; then all of it is of this run.
    """
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(start if start <= end else 0, end - CONSOLE_TAIL))
            return file.read(CONSOLE_TAIL).decode(errors="replace")
    except OSError:
        return ""

"""Which of our dead children are collected: QEMUs that have left our session, and no others."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

import pytest
import trio
from iii_sandbox_libvirt.zombies import PATIENCE, THREAD, Zombies

from iii_core.testing.sandbox_harness import descendants

PR_SET_NAME = 15


def dead_child(name: bytes, *, daemon: bool) -> int:
    """A child that has ended, and has not been waited for."""
    pid = os.fork()
    if pid == 0:
        if daemon:
            os.setsid()
        ctypes.CDLL(None).prctl(PR_SET_NAME, name, 0, 0, 0)
        os._exit(3)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid


def is_there(pid: int) -> bool:
    """Collect it, if nobody has."""
    with suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    return False


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_spares() -> None:
    pid = dead_child(b"qemu-system-x86_64", daemon=True)
    zombies = Zombies("qemu-system-x86_64")
    zombies.spared.add(pid)
    with trio.move_on_after(0.1):
        await zombies.reap()
    assert is_there(pid)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_one_that_never_became_qemu_is_collected_when_libvirt_does_not() -> None:
    """libvirt was told to end a guest between its fork and its exec, and waits until it is gone."""
    pid = dead_child(THREAD.encode(), daemon=True)
    try:
        zombies = Zombies("qemu-system-x86_64")
        with trio.move_on_after(PATIENCE / 2):
            await zombies.reap()
        assert f"{pid} {THREAD}" in descendants(os.getpid()), "it is still there, for libvirt"
        with trio.move_on_after(PATIENCE):
            await zombies.reap()
        assert not is_there(pid)
    finally:
        is_there(pid)


@pytest.mark.parametrize(
    ("name", "daemon", "collected"),
    [
        (b"qemu-system-x86_64", True, True),  # cut to 15 bytes by the kernel
        (b"qemu-system-x86_64", False, False),  # libvirt waits for it itself
        (b"somebody (else) ", True, False),
        (b"qemu", True, False),
    ],
)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_collects(name: bytes, daemon: bool, collected: bool) -> None:
    pid = dead_child(name, daemon=daemon)
    try:
        with trio.move_on_after(0.1):
            await Zombies("qemu-system-x86_64").reap()
        assert is_there(pid) is not collected
    finally:
        is_there(pid)

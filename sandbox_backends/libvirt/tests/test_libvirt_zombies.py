"""Which of our dead children are collected: QEMUs that have left our session, and no others."""

from __future__ import annotations

import ctypes
import os
import threading
from contextlib import suppress

import pytest
import trio
from iii_sandbox_libvirt.zombies import THREAD, Zombies

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
async def test_what_libvirt_waits_for_itself_is_left_to_it() -> None:
    """However long a busy machine keeps libvirt from it: whoever it forks between itself and a guest is no orphan."""
    pids: list[int] = []
    seen, forked = threading.Event(), threading.Event()

    def fork_as_libvirt() -> None:
        pids.append(dead_child(THREAD.encode(), daemon=True))
        forked.set()
        seen.wait()

    thread = threading.Thread(target=fork_as_libvirt)
    thread.start()
    try:
        assert await trio.to_thread.run_sync(forked.wait, 30)
        with trio.move_on_after(0.1):
            await Zombies("qemu-system-x86_64").reap()
        assert is_there(pids[0])
    finally:
        seen.set()
        thread.join()


@pytest.mark.parametrize(
    ("name", "daemon", "collected"),
    [
        (b"qemu-system-x86_64", True, True),  # cut to 15 bytes by the kernel
        (b"qemu-system-x86_64", False, False),  # libvirt waits for it itself
        (THREAD.encode(), True, True),  # killed between its fork and its exec, and libvirt waits until it is gone
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

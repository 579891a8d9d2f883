"""libvirt from trio, with libvirt's own test driver: a real library, daemon-less, whose domains are make-believe."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import trio
from iii_sandbox_libvirt.api import load
from iii_sandbox_libvirt.connection import open_connection, translated

from iii_core.errors import BackendUnavailable, SandboxError

from .vmkit import Bench

TEST = "test:///default"
XML = "<domain type='test'><name>{}</name><memory>8192</memory><os><type>hvm</type></os></domain>"


async def test_a_domains_life() -> None:
    async with open_connection(TEST, "qemu-system-x86_64") as connection:
        stopped = await connection.create("one", XML.format("one"), autodestroy=False)
        assert "one" in await connection.names()
        assert not stopped.is_set()
        await connection.destroy("one")
        with trio.fail_after(30):
            await stopped.wait()
        assert "one" not in await connection.names()
        await connection.destroy("one")  # there is none: nothing happens


async def test_many_at_once() -> None:
    async def live(name: str) -> None:
        stopped = await connection.create(name, XML.format(name), autodestroy=False)
        await connection.destroy(name)
        await stopped.wait()

    async with open_connection(TEST, "qemu-system-x86_64") as connection:
        before = await connection.names()
        with trio.fail_after(40):
            async with trio.open_nursery() as nursery:
                for number in range(40):
                    nursery.start_soon(live, f"d{number}")
        assert await connection.names() == before


@pytest.mark.parametrize("xml", ["", "<domain>", XML.format(""), "<domain type='kvm'/>"])
async def test_bad_xml(xml: str) -> None:
    async with open_connection(TEST, "qemu-system-x86_64") as connection:
        before = await connection.names()
        with pytest.raises(SandboxError, match="libvirt: ") as caught:
            await connection.create("bad", xml, autodestroy=False)
        assert caught.value.details["backend"] == "libvirt"
        assert isinstance(caught.value.details["libvirt_code"], int)
        assert await connection.names() == before


def test_what_no_new_try_can_help_is_the_backends_fault() -> None:
    library = load()
    long = translated(library, library.libvirtError("UNIX socket path '/home/u/…/domain-1-x/monitor.sock' too long"))
    assert isinstance(long, BackendUnavailable)
    assert "connection: embed" in (long.hint or "")
    assert type(translated(library, library.libvirtError("Cannot allocate memory"))) is SandboxError


async def test_opened_again_and_again() -> None:
    for _ in range(3):
        async with open_connection(TEST, "qemu-system-x86_64") as outer:
            async with open_connection(TEST, "qemu-system-x86_64") as inner:
                assert await inner.names() == await outer.names()
            await outer.names()


@pytest.mark.parametrize(
    ("uri", "message", "hint"),
    [
        ("qemu+unix:///system?socket=/nonexistent", "Failed to connect socket", "start libvirtd"),
        ("test:///nonexistent", "(test:///nonexistent)", None),
    ],
)
async def test_refusals(uri: str, message: str, hint: str | None) -> None:
    with pytest.raises(BackendUnavailable) as caught:
        async with open_connection(uri, "qemu-system-x86_64"):
            pass
    assert message in caught.value.message
    assert caught.value.code == "W231"
    assert hint is None or hint in (caught.value.hint or "")


async def test_a_daemon_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iii_sandbox_libvirt.connection.OPEN_TIMEOUT", 0.3)
    with _listening(tmp_path / "s"), pytest.raises(BackendUnavailable, match="did not answer within"):
        async with open_connection(f"qemu+unix:///system?socket={tmp_path}/s", "qemu-system-x86_64"):
            pass


def _listening(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


async def test_no_binding(bench: Bench, tmp_path: Path) -> None:
    """A module of that name that cannot be loaded comes first, as where the shared library is missing."""
    (tmp_path / "libvirt.py").write_text("raise ImportError('libvirt.so.0: cannot open shared object file')\n")
    with bench.nothing_remains(), pytest.raises(BackendUnavailable, match="binding cannot be loaded") as caught:
        async with bench.driver(environ={"PYTHONPATH": str(tmp_path)}):
            pass
    assert "apt install libvirt0" in (caught.value.hint or "")


async def test_no_driver_for_qemu(bench: Bench, tmp_path: Path) -> None:
    with bench.nothing_remains(), pytest.raises(BackendUnavailable) as caught:
        async with bench.driver(environ={"LIBVIRT_DRIVER_DIR": str(tmp_path)}):
            pass
    assert "libvirt-daemon-driver-qemu" in (caught.value.hint or "")


async def test_no_emulator(bench: Bench) -> None:
    with bench.nothing_remains(), pytest.raises(BackendUnavailable, match="is not installed") as caught:
        async with bench.driver(emulator="qemu-system-nothing"):
            pass
    assert caught.value.hint == "apt install qemu-system-x86"


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's QEMU runs as that user")
async def test_no_such_user(bench: Bench) -> None:
    with bench.nothing_remains(), pytest.raises(BackendUnavailable, match="no user 'nobody-here'"):
        async with bench.driver(user="nobody-here"):
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's session is its own")
async def test_no_session_for_root(bench: Bench) -> None:
    with bench.nothing_remains(), pytest.raises(BackendUnavailable, match="root has no libvirt session"):
        async with bench.driver(connection="session"):
            pass


async def test_no_libvirtd(bench: Bench, tmp_path: Path) -> None:
    with bench.nothing_remains(), pytest.raises(BackendUnavailable) as caught:
        async with bench.driver(connection=f"qemu+unix:///system?socket={tmp_path}/none"):
            pass
    assert "connection: embed" in (caught.value.hint or "")

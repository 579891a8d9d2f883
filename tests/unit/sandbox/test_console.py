"""The console file: private, appended to, never bigger than its limit, and told as safe text."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from iii_core.sandbox.console import DROPPED, FILE_LIMIT, Console


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "console.log"


def write(path: Path, *pieces: bytes, limit: int = FILE_LIMIT, after_each: Callable[[], None] = int) -> Console:
    """A console that has taken all of ``pieces``."""

    async def taken() -> Console:
        console = Console(path, limit=limit)
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                async with console.pipe(nursery) as pipe:
                    for piece in pieces:
                        await trio.to_thread.run_sync(os.write, pipe, piece)
                        after_each()
                await console.wait_ended()
        return console

    return trio.run(taken)


def test_one_boot_after_the_other(path: Path) -> None:
    write(path, b"first\n")
    assert path.read_bytes() == b"first\n"
    console = write(path, b"second ", b"boot\n")
    assert path.read_bytes() == b"first\nsecond boot\n"
    assert console.tail() == "second boot"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_flood_keeps_the_file_small_and_the_end(path: Path) -> None:
    pieces = [b"".join(b"line %06d\n" % (at + number) for number in range(100)) for at in range(0, 20_000, 100)]
    sizes: list[int] = []
    console = write(path, *pieces, limit=4096, after_each=lambda: sizes.append(path.stat().st_size))
    assert max(sizes) <= 4096
    kept = path.read_bytes()
    assert kept.startswith(DROPPED)
    assert len(kept) >= 2000
    assert kept.removeprefix(DROPPED) == b"".join(pieces)[-len(kept) + len(DROPPED) :]
    assert kept.removeprefix(DROPPED).startswith(b"line ")
    assert console.tail().splitlines()[-1] == "line 019999"


@pytest.mark.parametrize("piece", [b"x" * 10_000, b"y" * 4097, b"\n" * 9000])
def test_a_flood_without_lines(path: Path, piece: bytes) -> None:
    write(path, *[piece] * 20, limit=4096)
    assert len(DROPPED) < path.stat().st_size <= 4096


def test_the_next_boot_minds_what_is_there(path: Path) -> None:
    write(path, b"old\n" * 1000, limit=4096)
    assert path.stat().st_size == 4000
    console = write(path, b"new\n" * 100, limit=4096)
    assert path.stat().st_size <= 4096
    assert path.read_bytes().endswith(b"old\n" + b"new\n" * 100)
    assert "old" not in console.tail()


def test_tail_is_the_last_4_kib(path: Path) -> None:
    console = write(path, b"a" * 5000 + b"\n" + b"b" * 4000)
    assert console.tail() == "a" * 95 + "\n" + "b" * 4000


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"\x1b]0;owned\x07title\r\n", "0;owned\ufffdtitle"),
        (b"\x1b[31mred\x1b[0m\x1b[2J\x1bM", "red"),
        (b"half \x1b[31", "half \ufffd[31"),
        (b"one\r\ntwo\rthree", "one\ntwo\ufffdthree"),
        (b"\xff\xfe\0", "\ufffd\ufffd\ufffd"),
        ("später\tja\n".encode(), "später\tja"),
        (b"\x9b31m" + "\u0085\u009b".encode(), "\ufffd31m\ufffd\ufffd"),
        (b"", ""),
    ],
)
def test_tail_is_safe_to_print(path: Path, said: bytes, told: str) -> None:
    console = write(path, said)
    assert console.tail() == told
    assert path.read_bytes() == said


def test_a_full_disk_loses_the_file_not_the_tail(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.parent.mkdir()
    path.symlink_to("/dev/full")
    monkeypatch.setattr(os, "O_NOFOLLOW", 0)
    console = write(path, b"x\n" * 100, b"the end\n")
    assert console.tail().endswith("the end")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        Path("/dev/full").write_bytes(b"x")


@pytest.mark.parametrize("arrange", [lambda path: path.symlink_to("/etc/passwd"), lambda path: path.mkdir()])
def test_what_is_no_file_is_refused(path: Path, arrange: Callable[[Path], None]) -> None:
    path.parent.mkdir()
    arrange(path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match=r"symbolic links|directory"):
        Console(path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_two_streams_of_one_boot(path: Path) -> None:
    """The file is closed when the last of them has ended, and not before."""

    async def talk() -> None:
        console = Console(path)
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery, console.pipe(nursery) as one:
                async with trio.open_nursery() as inner, console.pipe(inner) as two:
                    os.write(two, b"two\n")
                assert console.taking
                os.write(one, b"one\n")
        assert not console.taking
        await console.wait_ended()
        assert console.tail() == "two\none"

    trio.run(talk)
    assert path.read_bytes() == b"two\none\n"


def test_nothing_leaks(path: Path) -> None:
    """Neither where the block is cancelled before it began, nor where the console is closed untaken, twice."""

    async def talk() -> None:
        console = Console(path)
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                scope.cancel()
                async with console.pipe(nursery):
                    await trio.sleep_forever()
            assert scope.cancelled_caught
        await console.wait_ended()
        untaken = Console(path)
        untaken.close()
        untaken.close()
        await untaken.wait_ended()
        assert untaken.tail() == ""

    before = len(list(Path("/proc/self/fd").iterdir()))
    trio.run(talk)
    assert len(list(Path("/proc/self/fd").iterdir())) == before

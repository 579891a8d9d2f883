"""The program that the conformance kit runs inside, and its image."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from iii_sandbox_guest import checkprog
from iii_sandbox_guest.checkprog import COMMANDS, INSIDE, checkprog_path, make_check_image

from iii_core.errors import BackendUnavailable, SpawnError

from .conftest import SOURCE


def run(argv: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
    """Run what would be run inside."""
    assert argv[0] == INSIDE
    command = [str(checkprog_path()), *argv[1:]]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, **options)  # type: ignore[call-overload,no-any-return]


def limited(*arguments: str) -> list[str]:
    return ["prlimit", *arguments, "--", str(checkprog_path())]


def test_it_writes_and_reads(tmp_path: Path) -> None:
    path = str(tmp_path / "mark")
    assert run(COMMANDS.write(path, "long before")).returncode == 0
    assert run(COMMANDS.write(path, "of one\n")).returncode == 0
    assert run(COMMANDS.read(path)).stdout == "of one\n"


def test_it_says_what_it_cannot(tmp_path: Path) -> None:
    for argv in (
        COMMANDS.read(str(tmp_path / "none")),
        COMMANDS.write(str(tmp_path), "x"),
        COMMANDS.fill("/none/x", 1),
    ):
        done = run(argv)
        assert done.returncode == 1
        assert done.stderr.startswith("checkprog: /")


def test_it_connects() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert run(COMMANDS.connect("127.0.0.1", port)).returncode == 0
    refused = run(COMMANDS.connect("127.0.0.1", port))
    assert (refused.returncode, refused.stderr) == (1, "checkprog: 127.0.0.1: Connection refused\n")
    assert run(COMMANDS.connect("localhost", port)).returncode == 1
    assert run(COMMANDS.connect("127.0.0.1", 65537)).returncode == 2


def test_it_tells_its_user() -> None:
    assert run(COMMANDS.user_id).stdout == f"{os.getuid()}\n"


def test_it_fills_with_what_cannot_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "full"
    assert run(COMMANDS.fill(str(path), 2)).returncode == 0
    assert path.stat().st_size == 2 << 20
    assert path.stat().st_blocks * 512 >= 2 << 20


def test_it_fails_where_the_file_may_not_grow(tmp_path: Path) -> None:
    command = [*limited(f"--fsize={1 << 20}"), "fill", str(tmp_path / "full"), "2"]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_it_touches_memory() -> None:
    assert run(COMMANDS.allocate(8)).returncode == 0
    done = subprocess.run([*limited(f"--as={64 << 20}"), "allocate", "512"], capture_output=True, check=False)
    assert done.returncode == 1
    assert b"memory: " in done.stderr


def test_it_forks_as_an_ordinary_user() -> None:
    """RLIMIT_NPROC does not bind root, so another user id is taken, which has no other processes."""
    assert run(COMMANDS.fork(4)).returncode == 0
    if os.getuid() != 0:
        pytest.skip("taking another user id needs root")
    with checkprog_path().open("rb") as program:  # the way to the file may be closed for that user
        command = [
            "setpriv",
            "--reuid=61234",
            "--clear-groups",
            "prlimit",
            "--nproc=8",
            f"/proc/self/fd/{program.fileno()}",
        ]
        done = subprocess.run([*command, "fork", "64"], pass_fds=[program.fileno()], capture_output=True, check=False)
    assert done.returncode == 1
    assert b"fork: " in done.stderr


@pytest.mark.parametrize(
    "words", [(), ("fork",), ("fork", "0"), ("fork", "x"), ("id", "x"), ("allocate", "1 "), ("rm", "x")]
)
def test_it_refuses_what_it_does_not_know(words: tuple[str, ...]) -> None:
    done = run((INSIDE, *words))
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")


def test_it_is_that_of_the_source(tmp_path: Path) -> None:
    argv = ["make", "-s", "-C", str(SOURCE), "checkprog", f"CHECKPROG={tmp_path / 'checkprog'}"]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    assert (tmp_path / "checkprog").read_bytes() == checkprog_path().read_bytes(), "run `uv sync --all-packages`"
    assert "NEEDED" not in subprocess.run(["readelf", "-dW", checkprog_path()], capture_output=True, text=True).stdout


def test_the_image_holds_it_alone(tmp_path: Path) -> None:
    image = make_check_image(tmp_path / "image.squashfs")
    assert [path.name for path in tmp_path.iterdir()] == ["image.squashfs"]
    listed = subprocess.run(["unsquashfs", "-llnumeric", image.path], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listed.splitlines() if "squashfs-root" in line]
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("drwxr-xr-x", "0/0", "squashfs-root"),
        ("drwxr-xr-x", "0/0", "squashfs-root/bin"),
        ("-rwxr-xr-x", "0/0", "squashfs-root/bin/checkprog"),
    ]


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        with pytest.raises(SpawnError, match="mksquashfs is not installed"):
            make_check_image(tmp_path / "image.squashfs")
    with pytest.raises(SpawnError, match="mksquashfs failed"):
        make_check_image(tmp_path)
    monkeypatch.setattr(checkprog, "__file__", str(tmp_path / "checkprog.py"))
    with pytest.raises(BackendUnavailable, match="missing at"):
        checkprog_path()

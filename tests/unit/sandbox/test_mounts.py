"""Which folders may be shown inside, and where."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from iii_core.errors import SandboxError
from iii_core.sandbox.mounts import check_mounts
from iii_core.sandbox.port import Mount


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("shown/below", "home/kept", "project/.iii/layers", "other"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "to-home").symlink_to("home/kept")
    (tmp_path / "to-root").symlink_to("/")
    (tmp_path / "circle").symlink_to("circle")
    return tmp_path


def refusal(folder: Path, *mounts: Mount) -> str:
    with pytest.raises(SandboxError, match="cannot be mounted") as caught:
        check_mounts(mounts, private=[folder / "home", folder / "not-there-yet/x"])
    assert caught.value.hint
    return caught.value.message


@pytest.mark.parametrize("source", ["shown", "shown/below", "other"])
@pytest.mark.parametrize(
    "target", ["/data", "/workspace", "/mnt/a/b", "/home", "/etc/app", "/tmpfiles", "/tmp/x", "/run/app"]
)
@pytest.mark.parametrize("writable", [False, True])
def test_allowed(folder: Path, source: str, target: str, writable: bool) -> None:
    check_mounts([Mount(source=folder / source, target=target, writable=writable)], private=[folder / "home"])


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("missing", "No such file"),
        ("circle", "Symlink loop"),
        ("file", "no folder"),
        ("home", "may not be seen"),
        ("home/kept", "may not be seen"),
        ("to-home", "may not be seen"),
        ("shown/../home", "may not be seen"),
        (".", "may not be seen"),
        ("project/.iii", "private"),
        ("project/.iii/layers", "private"),
        ("to-root", "may not be seen"),
        ("/", "/proc may not be seen"),
        ("/proc", "/proc may not be seen"),
        ("/proc/self/fd", "/proc may not be seen"),
        ("/dev/shm", "/dev may not be seen"),
        ("/sys/fs", "/sys may not be seen"),
    ],
)
def test_refused_sources(folder: Path, source: str, why: str) -> None:
    assert why in refusal(folder, Mount(source=folder / source, target="/data"))


def test_what_holds_a_private_folder_that_is_not_there_yet(folder: Path) -> None:
    (folder / "not-there-yet").mkdir()
    assert "may not be seen" in refusal(folder, Mount(source=folder / "not-there-yet", target="/data"))


def test_a_relative_source(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert "absolute" in refusal(folder, Mount(source=Path("shown"), target="/data"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
@pytest.mark.parametrize(("mode", "writable"), [(0o000, False), (0o555, True)])
def test_not_ours(folder: Path, mode: int, writable: bool) -> None:
    (folder / "other").chmod(mode)
    assert "this user may not" in refusal(folder, Mount(source=folder / "other", target="/data", writable=writable))


@pytest.mark.parametrize(
    "target",
    ["", "data", "/", "//", "//data", "/data/", "/a/../b", "/a/./b", "/a//b", "/x\0", "/proc", "/proc/1", "/dev/x",
     "/run/iii", "/sys", "/tmp", "/run", "/run/iii/x"],
)  # fmt: skip
def test_refused_targets(folder: Path, target: str) -> None:
    refusal(folder, Mount(source=folder / "shown", target=target))


@pytest.mark.parametrize("targets", [("/a", "/a"), ("/a/b", "/a"), ("/x", "/a", "/a/b/c")])
def test_targets_must_be_apart(folder: Path, targets: tuple[str, ...]) -> None:
    assert "another one" in refusal(folder, *(Mount(source=folder / "shown", target=target) for target in targets))
    check_mounts([Mount(source=folder / "shown", target=f"/{name}") for name in ("a", "a-b", "ab")], private=[])


def test_too_many(folder: Path) -> None:
    mounts = [Mount(source=folder / "shown", target=f"/m{number}") for number in range(33)]
    check_mounts(mounts[:32], private=[])
    with pytest.raises(SandboxError, match="33 mounts are too many"):
        check_mounts(mounts, private=[])

"""Fetching a kernel by the real apt and dpkg, from a repository in a folder."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from iii_sandbox_guest import fetch_kernel
from iii_sandbox_guest.kernel import Kernel, kernels_dir

from iii_core.errors import BackendUnavailable

from .test_boot_files import bzimage

RELEASE = "6.1.0-1-cloud-test"
PACKAGE = f"linux-image-{RELEASE}"


def make_package(folder: Path, name: str, control: str, files: dict[str, bytes]) -> str:
    """Build a .deb in ``folder``, and give its record for the list of packages."""
    tree = folder / f"{name}.tree"
    for path, content in {"DEBIAN/control": control.encode(), **files}.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(content)
    archive = folder / f"{name}.deb"
    subprocess.run(["dpkg-deb", "-b", "--root-owner-group", tree, archive], check=True, capture_output=True)
    content = archive.read_bytes()
    return (
        f"{control}Filename: ./{archive.name}\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n\n"
    )


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository that has a kernel, as this machine's only one; nobody has read its list yet."""
    folder = tmp_path / "repository"
    folder.mkdir()
    architecture = subprocess.check_output(["dpkg", "--print-architecture"], text=True).strip()
    common = f"Version: 1\nArchitecture: {architecture}\nMaintainer: a <a@example.invalid>\nDescription: test\n"
    packages = make_package(
        folder, "meta", f"Package: linux-image-cloud-{architecture}\nDepends: {PACKAGE} (= 1)\n{common}", {}
    )
    packages += make_package(
        folder,
        "image",
        f"Package: {PACKAGE}\n{common}",
        {
            f"boot/vmlinuz-{RELEASE}": bzimage(RELEASE),
            f"boot/config-{RELEASE}": b"CONFIG_64BIT=y\n",
            f"lib/modules/{RELEASE}/modules.builtin": b"kernel/fs/ext4/ext4.ko\n",
            f"lib/modules/{RELEASE}/modules.order": b"",
        },
    )
    (folder / "Packages").write_text(packages)
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes] file:{folder} ./\n")
    state = tmp_path / "state"
    for name in ("lists/partial", "cache/archives/partial", "empty"):
        (state / name).mkdir(parents=True)
    (tmp_path / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{tmp_path}/sources.list";\nDir::Etc::sourceparts "{state}/empty";\n'
        f'Dir::State::lists "{state}/lists";\nDir::Cache "{state}/cache";\nAPT::Sandbox::User "";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    return folder


def left_over(home: Path) -> list[str]:
    return sorted(path.name for path in kernels_dir(home).iterdir())


async def test_two_at_a_time_fetch_one_kernel(repository: Path, tmp_path: Path) -> None:
    """With lists that were never read: each reads its own."""
    found: list[Kernel] = []
    told: list[str] = []

    async def fetch() -> None:
        found.append(await fetch_kernel(tmp_path / "home", progress=told.append))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch)
        nursery.start_soon(fetch)
    assert found[0] == found[1]
    assert found[0].release == RELEASE
    assert found[0].image.read_bytes() == bzimage(RELEASE)
    assert left_over(tmp_path / "home") == [RELEASE]
    assert "reading the lists of packages" in told
    told.clear()
    assert await fetch_kernel(tmp_path / "home", progress=told.append) == found[0]
    assert not any("download" in line for line in told)


def test_the_command_says_where_the_kernel_is(repository: Path, tmp_path: Path) -> None:
    argv = [Path(sys.executable).with_name("iii"), "sandbox", "setup"]
    environ = {**os.environ, "III_HOME": str(tmp_path / "home")}
    done = subprocess.run(argv, env=environ, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"kernel {RELEASE} in {tmp_path}/home/kernels/{RELEASE}" in done.stderr
    (repository / "image.deb").unlink()
    environ["III_HOME"] = str(tmp_path / "other")
    done = subprocess.run(argv, env=environ, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "[W231]" in done.stderr


async def test_a_download_that_fails_leaves_nothing(repository: Path, tmp_path: Path) -> None:
    (repository / "image.deb").write_bytes(b"cut")
    with pytest.raises(BackendUnavailable, match=f"downloading {PACKAGE} failed") as caught:
        await fetch_kernel(tmp_path / "home")
    assert caught.value.hint is not None
    assert left_over(tmp_path / "home") == []


async def test_sources_without_a_kernel_say_so(repository: Path, tmp_path: Path) -> None:
    (repository / "Packages").write_text("")
    with pytest.raises(BackendUnavailable, match="package sources of this machine have no linux-image-cloud-"):
        await fetch_kernel(tmp_path / "home")


async def test_a_cancelled_fetch_leaves_nothing(repository: Path, tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        await fetch_kernel(tmp_path / "home", progress=lambda _: scope.cancel())
    assert scope.cancelled_caught
    assert left_over(tmp_path / "home") == []


async def test_what_a_killed_run_left_is_removed(repository: Path, tmp_path: Path) -> None:
    old, new = (kernels_dir(tmp_path) / name for name in (".fetch-old", ".fetch-new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (1, 1))
    await fetch_kernel(tmp_path)
    assert left_over(tmp_path) == [".fetch-new", RELEASE]

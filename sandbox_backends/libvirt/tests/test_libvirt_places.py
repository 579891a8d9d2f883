"""Where QEMU finds what it needs, and nothing else."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from iii_sandbox_libvirt.places import Places, render_qemu_conf
from iii_sandbox_libvirt.users import User

from iii_core.errors import BackendUnavailable

from .vmkit import HERE, python

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root's QEMU has a user of its own")


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short name, as a runtime folder has."""
    with tempfile.TemporaryDirectory(prefix="iii-") as folder:
        yield Path(folder)


def open_places(runtime_dir: Path) -> Places:
    places = Places(runtime_dir, None, binds=True, purpose="vm")
    places.open()
    return places


def test_an_ordinary_users_files_are_where_they_are(short: Path) -> None:
    places = open_places(short)
    place = places.make("box")
    assert place.show("root", short / "image") == short / "image"
    for folder in (place.folder, *place.folder.relative_to(short).parents[:-1]):
        assert stat.S_IMODE((short / folder).stat().st_mode) == 0o700
    with place.listen("link"), place.listen("console"):
        assert sorted(path.name for path in place.folder.iterdir()) == ["console", "link"]
    place.remove()
    assert not place.folder.exists()
    place.remove()
    places.close()
    assert not places.base.exists()
    places.close()


def test_each_open_driver_has_a_folder_of_its_own(short: Path) -> None:
    first, second = open_places(short), open_places(short)
    assert first.base != second.base
    assert first.domain("box") != second.domain("box")
    mine = second.make("box").folder
    first.clear()
    assert mine.exists()
    assert not first.is_abandoned(second.domain("box"))
    first.close()
    assert mine.exists()
    third = open_places(short)
    assert third.base == first.base
    second.close()
    third.close()


def test_ids_of_any_length_make_short_paths(short: Path) -> None:
    places = open_places(short)
    lengths = {len(str(places.make(name).folder)) for name in ("a", "a" * 63, "a" * 62 + "b")}
    assert len(lengths) == 1
    places.close()


def sockets_fit(places: Places) -> bool:
    """Whether libvirt can make the socket of any guest, as it names it."""
    name = places.domain("box")[:20]
    return len(str(places.libvirt / f"lib/qemu/domain-99999-{name}" / "monitor.sock")) <= 107


def test_libvirts_sockets_are_in_the_runtime_folder_of_a_session() -> None:
    for user in (1000, 65533):
        runtime = Path(f"/run/user/{user}/iii/0123456789ab/sandbox-host")
        places = Places(runtime, None, binds=True, purpose="vm")
        assert places.libvirt.is_relative_to(runtime)
        assert sockets_fit(places)


@pytest.fixture
def last_resort(monkeypatch: pytest.MonkeyPatch, short: Path) -> Path:
    """The folder that is used instead of a long one: one of this test."""
    base = short / "u"
    monkeypatch.setattr("iii_sandbox_libvirt.places.last_runtime_base", lambda: base)
    return base


LONGEST = 45
"""Bytes of a sandbox host's runtime folder that leave room for libvirt's sockets."""


@pytest.mark.parametrize("length", [LONGEST, LONGEST + 1, 108, 200])
def test_a_long_runtime_folder_is_not_for_sockets(short: Path, last_resort: Path, length: int) -> None:
    runtime = short / ("r" * (length - len(str(short)) - 1))
    places = open_places(runtime)
    with places.make("box").listen("console"):
        assert places.write_qemu_conf().is_relative_to(runtime if length == LONGEST else last_resort)
        assert sockets_fit(places)
    assert runtime.exists() is (length == LONGEST)
    for folder in (places.base, *places.base.relative_to(short).parents[:-2]):
        assert stat.S_IMODE((short / folder).stat().st_mode) == 0o700
    places.close()
    assert not places.base.exists()


def test_projects_share_no_folder_for_sockets(short: Path, last_resort: Path) -> None:
    one, other = (open_places(short / (name * 100)) for name in "ab")
    assert one.libvirt != other.libvirt
    assert one.libvirt.parent.parent == other.libvirt.parent.parent == last_resort


def test_no_folder_for_sockets_is_said_up_front(tmp_path: Path, last_resort: Path) -> None:
    last_resort.symlink_to(tmp_path)
    with pytest.raises(BackendUnavailable, match=r"too long a name, and .*: not a folder") as caught:
        open_places(tmp_path / ("r" * 100))
    assert "XDG_RUNTIME_DIR" in (caught.value.hint or "")
    assert list(tmp_path.iterdir()) == []


def test_qemu_conf_of_an_ordinary_user() -> None:
    assert render_qemu_conf(None) == 'stdio_handler = "file"\nseccomp_sandbox = 1\n'


def test_qemu_conf_of_root() -> None:
    assert render_qemu_conf(User("q", 5, 6)).splitlines() == [
        'stdio_handler = "file"',
        "seccomp_sandbox = 1",
        'user = "+5"',
        'group = "+6"',
        "dynamic_ownership = 0",
        "remember_owner = 0",
        'security_driver = "none"',
        "namespaces = []",
        "cgroup_controllers = []",
    ]


@as_root
def test_root_needs_mounts_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="whose mounts are its own") as caught:
        Places(tmp_path, User("q", 5, 6), binds=True, purpose="vm").open()
    assert "sandbox host" in (caught.value.hint or "")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("places")
    command = ["unshare", "--mount", *python(HERE / "placesrunner.py", folder)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


EXPECTED: dict[str, object] = {
    "outside": "PermissionError",
    "shared": "shared",
    "shared-write": "PermissionError",
    "data-write": "7",
    "data-now": "changed",
    "list-folder": "['data', 'shared']",
    "list-above": "PermissionError",
    "ids-differ": True,
    "owner-of-given": True,
    "others-folder": "PermissionError",
    "others-file": "PermissionError",
    "data-owner": 0,
    "ids-of-the-dead": True,
    "ids-left": [],
    "socket": "connected",
    "mounts-left": [],
    "kvm-of-root": "PermissionError",
    "kvm-of-a-group": "PermissionError",
    "kvm-lent": "None",
    "kvm-after": "0o20660",
    "data-kept": True,
    "of-the-living": False,
    "of-the-dead": True,
    "of-others": [False] * 4,
    "bases": ["vm1"],
    "mounts-of-the-dead": [],
    "after-close": [],
}


@as_root
@pytest.mark.parametrize("what", EXPECTED)
def test_qemus_own_user(found: dict[str, Any], what: str) -> None:
    assert found[what] == EXPECTED[what]


@as_root
def test_qemus_own_user_is_told_what_it_may_not(found: dict[str, Any]) -> None:
    assert found["socket-length"] < 100
    assert "QEMU's user of id" in found["secret"]
    assert "chmod o+r" in found["secret"]
    assert "connection: embed" in found["unbound"]
    assert "keeps it out" in found["unbound"]
    assert found["foreign"].startswith("W231")
    assert "belongs to somebody else" in found["foreign"]

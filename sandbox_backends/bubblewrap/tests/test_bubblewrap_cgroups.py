"""Control groups: where they may be made, what is written, and what becomes of them; version 2 on a made-up tree."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from iii_sandbox_bubblewrap.cgroups import Cgroups, Parent, find_parents

from iii_core.sandbox.host_processes import ProcessId
from iii_core.sandbox.port import Limits

ALL = Limits(cpus=1.5, memory_mib=64, pids=32)
OWN = ProcessId.of(os.getpid()) or ProcessId(0, 0)
NAMESPACE = Path("/proc/self/ns/pid").stat().st_ino


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """/sys/fs/cgroup of a machine with version 2: a delegated slice, and the group we are in."""
    for name, handed_on in (("", "cpu memory pids io"), ("user", "cpu memory pids"), ("user/us", "")):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.procs").touch()
        (folder / "cgroup.subtree_control").write_text(handed_on + "\n", encoding="ascii")
    return tmp_path


def mounted(*lines: str) -> str:
    other = "22 1 0:20 / /proc rw,nosuid - proc proc rw\n"
    return other + "".join(f"30 24 0:26 {line}\n" for line in lines)


def unified(tree: Path, root: str = "/") -> str:
    return mounted(f"{root} {tree} rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate")


def test_v2_takes_the_nearest_group_that_hands_on(tree: Path) -> None:
    parent = Parent(tree / "user", unified=True)
    found = find_parents(unified(tree), "0::/user/us\n")
    assert found == {"cpu": parent, "memory": parent, "pids": parent}


def test_v2_hands_on_only_some(tree: Path) -> None:
    (tree / "user/cgroup.subtree_control").write_text("pids\n", encoding="ascii")
    assert find_parents(unified(tree), "0::/user/us\n") == {"pids": Parent(tree / "user", unified=True)}


def test_v2_nothing_is_handed_on(tree: Path) -> None:
    for folder in (tree, tree / "user"):
        (folder / "cgroup.subtree_control").write_text("\n", encoding="ascii")
    assert find_parents(unified(tree), "0::/user/us\n") == {}


def test_v2_in_a_container_that_sees_its_part_alone(tree: Path) -> None:
    found = find_parents(unified(tree, "/docker/abc"), "0::/docker/abc/user/us\n")
    assert found["cpu"] == Parent(tree / "user", unified=True)
    assert find_parents(unified(tree, "/docker/abc"), "0::/elsewhere\n")["cpu"] == Parent(tree, unified=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_v2_not_ours(tree: Path) -> None:
    for folder in (tree, tree / "user", tree / "user/us"):
        (folder / "cgroup.procs").chmod(0o444)
    assert find_parents(unified(tree), "0::/user/us\n") == {}


def test_v1_and_hybrid(tree: Path, tmp_path: Path) -> None:
    for name in ("cpu/us", "memory", "unified"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "cgroup.procs").touch()
        (tmp_path / name / "cgroup.subtree_control").touch()
    mounts = mounted(
        f"/ {tree}/cpu rw - cgroup cgroup rw,cpu,cpuacct",
        f"/deep {tree}/memory rw - cgroup cgroup rw,memory",
        f"/ {tree}/pids rw - cgroup cgroup rw,pids",  # not there
        f"/ {tree}/unified rw - cgroup2 cgroup2 rw",
    )
    found = find_parents(mounts, "4:cpu,cpuacct:/us\n3:memory:/deep\n2:pids:/\n1:name=systemd:/\n0::/\n")
    assert found == {"cpu": Parent(tree / "cpu/us", unified=False), "memory": Parent(tree / "memory", unified=False)}


@pytest.mark.parametrize("own", ["", "0::/\n", "1:name=systemd:/\n"])
def test_no_control_groups(own: str) -> None:
    assert find_parents(mounted(), own) == {}
    groups = Cgroups({}, OWN)
    assert groups.available == frozenset()
    assert groups.create("box", ALL) == ()
    groups.sweep()


def written(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text(encoding="ascii") for file in folder.iterdir()}


def test_v2_values(tree: Path) -> None:
    parent = Parent(tree / "user", unified=True)
    (group,) = Cgroups(dict.fromkeys(("cpu", "memory", "pids"), parent), OWN).create("box", ALL)
    assert group == tree / f"user/iii.{OWN.pid}.{OWN.started}.{NAMESPACE}.box"
    assert written(group) == {"cpu.max": "150000 100000", "memory.max": str(64 << 20), "pids.max": "32"}


def test_v1_values(tmp_path: Path) -> None:
    parents: dict[str, Parent] = {}
    for name in ("cpu", "memory", "pids"):
        (tmp_path / name).mkdir()
        parents[name] = Parent(tmp_path / name, unified=False)
    groups = Cgroups(parents, OWN).create("box", ALL)
    assert [written(group) for group in groups] == [
        {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "150000"},
        {"memory.limit_in_bytes": str(64 << 20)},
        {"pids.max": "32"},
    ]


def test_only_what_is_limited(tree: Path) -> None:
    groups = Cgroups({name: Parent(tree / "user", unified=True) for name in ("cpu", "memory", "pids")}, OWN)
    assert groups.create("box", Limits()) == ()
    (group,) = groups.create("box", Limits(pids=7))
    assert written(group) == {"pids.max": "7"}


@pytest.fixture
def real() -> Iterator[Cgroups]:
    """This machine's, in folders of the test's own: any other engine sweeps what is where it makes its own."""
    found = find_parents(
        Path("/proc/self/mountinfo").read_text(encoding="utf-8"),
        Path("/proc/self/cgroup").read_text(encoding="utf-8"),
    )
    if not found:
        pytest.skip("no control group of this machine may be written by this user")
    parents = {name: replace(parent, folder=parent.folder / f"tests-{os.getpid()}") for name, parent in found.items()}
    for parent in set(parents.values()):
        parent.folder.mkdir()
        if parent.unified:
            handed_on = " ".join(f"+{name}" for name in parents)
            (parent.folder / "cgroup.subtree_control").write_text(handed_on, encoding="ascii")
    yield Cgroups(parents, OWN)
    for parent in set(parents.values()):
        parent.folder.rmdir()


def test_real_groups(real: Cgroups) -> None:
    """Made, joined, kept while busy, and removed; this machine's version."""
    groups = real.create("unit", ALL)
    try:
        assert groups
        with subprocess.Popen(["sleep", "60"]) as process:
            for group in groups:
                (group / "cgroup.procs").write_text(str(process.pid), encoding="ascii")
            assert real.remove(groups) is False
            process.kill()
    finally:
        assert real.remove(groups) is True
    assert real.remove(groups) is True
    assert not [group for group in groups if group.exists()]


def test_what_cannot_be_made_leaves_nothing(real: Cgroups, tmp_path: Path) -> None:
    parents = {**real._parents, "pids": Parent(tmp_path / "gone", unified=False)}
    with pytest.raises(FileNotFoundError):
        Cgroups(parents, OWN).create("refused", ALL)
    assert not [group for parent in parents.values() for group in parent.folder.glob("iii.*.refused")]


def test_sweep(real: Cgroups) -> None:
    """What a dead process left is killed and removed; what lives, and what is another namespace's, stays."""
    with subprocess.Popen(["sleep", "60"]) as owner:
        dead = ProcessId.of(owner.pid)
        owner.kill()
    assert dead is not None
    left = Cgroups(dict(real._parents), dead).create("left", ALL)
    ours = real.create("ours", Limits(pids=5, memory_mib=64))
    foreign = [group.with_name(f"iii.{dead.pid}.{dead.started}.1.left") for group in left]
    odd = [group.with_name("iii.not.ours") for group in left]
    for group in foreign + odd:
        group.mkdir()
    with subprocess.Popen(["sleep", "60"]) as process:
        (left[0] / "cgroup.procs").write_text(str(process.pid), encoding="ascii")
        real.sweep()
        assert process.wait(timeout=30) == -9
    real.sweep()
    try:
        assert not [group for group in left if group.exists()]
        assert all(group.exists() for group in (*ours, *foreign, *odd))
    finally:
        assert real.remove([*ours, *foreign, *odd])

"""What the probe finds out by booting: with each kind of /dev/kvm, within its time, and what it remembers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .vmkit import HERE, HOME, ROOTS, python

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a /dev of its own"),
]
Probe = Callable[..., dict[str, Any]]
DEADLINE = 35  # seconds: the sandbox host's own for a probe, and some

WITH_KVM = """#!/bin/sh
prev=
for word do
    [ "$prev $word" = "-accel kvm" ] && kvm=yes
    prev=$word
done
[ "$kvm" ] || exec qemu-system-x86_64 "$@"
"""
MUTE = "exec sleep 1000\n"
STUCK = """
left=$#
prev=
while [ $left -gt 0 ]; do
    word=$1; shift; left=$((left - 1))
    case $prev in -accel) word=tcg ;; -cpu) word=max ;; esac
    case $word in
        -kernel|-initrd|-append) shift; left=$((left - 1)) ;;
        *) set -- "$@" "$word" ;;
    esac
    prev=$word
done
exec qemu-system-x86_64 "$@"
"""


@pytest.fixture
def home(tmp_path: Path, kernel: Path) -> Path:
    """An III_HOME with a kernel and nothing else: no verdict."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "kernels").symlink_to(HOME / "kernels")
    return home


@pytest.fixture
def probe(tmp_path: Path, home: Path) -> Probe:
    def run(kvm: str, **wish: Any) -> dict[str, Any]:
        wish |= {"kvm": kvm, "folder": str(tmp_path), "home": str(home)}
        command = ["unshare", "--mount", *python(HERE / "proberunner.py", json.dumps(wish))]
        before = set(ROOTS.glob("*"))
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=140)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        assert answer["left"] == []
        assert {path for path in set(ROOTS.glob("*")) - before if not any(path.glob("*[0-9]"))} == set()
        assert not list((tmp_path / "run").glob("probe-*"))
        return answer

    return run


def verdicts(home: Path) -> list[Path]:
    return list((home / "cache").glob("libvirt-*.json"))


def test_no_kvm_is_told_and_remembered(probe: Probe, home: Path) -> None:
    answer = probe("absent", times=4)
    first, *others = answer["results"]
    assert others == [first] * 3
    assert first["ok"]
    assert first["automatic"] is False  # a stronger backend than namespaces, but too slow to be chosen unasked
    assert "there is no /dev/kvm" in first["reason"]
    booting, *looking = answer["seconds"]
    assert min(looking) < booting / 4, "after the first time nothing boots"
    (verdict,) = verdicts(home)
    for broken in (b"", b"{", b'{"accelerator": "xen"}', b"\xff\xfe", b"[]"):
        verdict.write_bytes(broken)
        kept = probe("absent") if broken == b"{" else None
        if kept is not None:
            assert kept["results"] == [first]
            assert json.loads(verdict.read_bytes())["accelerator"] == "tcg", "it was found out anew"


@pytest.mark.long
@pytest.mark.parametrize(
    ("kvm", "reason"),
    [
        ("private", "may not be opened by QEMU's user"),
        ("hollow", "does not support virt type 'kvm'"),
    ],
)
def test_useless_kvm(probe: Probe, kvm: str, reason: str) -> None:
    answer = probe(kvm)
    (result,) = answer["results"]
    assert result["ok"]
    assert reason in result["reason"]
    assert answer["seconds"][0] < DEADLINE


@pytest.mark.skipif(not Path("/dev/kvm").exists(), reason="this machine has no /dev/kvm at all")
def test_kvm_as_it_is_here(probe: Probe) -> None:
    """Where guests run with it, it is used; where it opens and none ever boots, they are emulated."""
    answer = probe("real")
    (result,) = answer["results"]
    assert result["ok"]
    if not result["automatic"]:
        assert "a guest does not boot with it" in result["reason"]
    assert answer["seconds"][0] < DEADLINE


@pytest.mark.long
@pytest.mark.skipif(not Path("/dev/kvm").exists(), reason="libvirt asks for nothing with KVM here")
@pytest.mark.parametrize("kind", ["mute", "stuck"])
def test_kvm_that_hangs(probe: Probe, kind: str) -> None:
    """A QEMU that with KVM never opens its monitor, or runs a guest that never comes to life: stand-ins for both."""
    answer = probe("real", emulator=WITH_KVM + (MUTE if kind == "mute" else STUCK))
    (result,) = answer["results"]
    assert result["ok"], result
    assert "did not answer within 10 s" in result["reason"]
    assert answer["seconds"][0] < DEADLINE


def test_no_kernel(probe: Probe, home: Path) -> None:
    (home / "kernels").unlink()
    (result,) = probe("absent", settings={"kernel": "/nonexistent/vmlinuz"})["results"]
    assert not result["ok"]
    assert "vmlinuz cannot be read" in result["reason"]
    assert "iii sandbox setup" in result["hint"]
    assert verdicts(home) == []


@pytest.mark.long
def test_nothing_boots(probe: Probe, home: Path, tmp_path: Path, kernel: Path) -> None:
    """A kernel that is none: no verdict is kept, and the reason is there."""
    broken = tmp_path / "6.1.0-broken"
    shutil.copytree(kernel / "modules", broken / "modules")
    (broken / "vmlinux").write_bytes(b"\x7fELF\x02\x01\x01" + bytes(4096))
    (result,) = probe("absent", settings={"kernel": str(broken)})["results"]
    assert not result["ok"]
    assert result["reason"]
    assert verdicts(home) == []

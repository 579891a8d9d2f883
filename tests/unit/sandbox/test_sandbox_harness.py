"""What the conformance kit takes for left behind: a backend's mounts, and not those of the rest of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from iii_core.testing.sandbox_harness import is_foreign

if TYPE_CHECKING:
    from pathlib import Path

MOUNTS = """
import ctypes, sys
from pathlib import Path
from iii_core.sandbox.port import RootImage
from iii_core.testing.sandbox_harness import SandboxesUnderTest

def mount(source, target, kind, flags):
    Path(target).mkdir(parents=True, exist_ok=True) if kind else Path(target).touch()
    assert ctypes.CDLL(None, use_errno=True).mount(source, str(target).encode(), kind, flags, None) == 0

folder = Path(sys.argv[1])
image = RootImage(path=folder / "none", format="squashfs", digest="sha256:" + "0" * 64)
under_test = SandboxesUnderTest(open=None, image=image, folder=folder, capabilities=frozenset())
under_test.spec("mine")
mount(b"run", "/run", b"tmpfs", 0)
Path("/run/netns").mkdir()
before = under_test.snapshot()
BIND = 4096
mount(b"/proc/self/ns/net", "/run/netns/other", None, BIND)
assert under_test.changed(before) == []
mount(b"/proc/self/ns/net", "/run/netns/iii-mine", None, BIND)
mount(b"left", "/run/left", b"tmpfs", 0)
(said,) = under_test.changed(before)
assert said.startswith("mounts: new [") and "/run/netns/iii-mine" in said and "/run/left" in said, said
assert "other" not in said
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_mounts_of_a_backend_are_seen_and_those_of_others_are_not(tmp_path: Path) -> None:
    """In a mount namespace of its own: the machine's table is everybody's."""
    subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", MOUNTS, tmp_path], check=True
    )


@pytest.mark.parametrize(
    ("mount", "foreign"),
    [
        ("1 2 0:4 net:[4026532] /run/netns/x rw shared:5 - nsfs nsfs rw", True),
        ("1 2 0:4 net:[4026532] /run/netns/iii-one rw - nsfs nsfs rw", False),
        ("1 2 0:4 net:[4026532] /tmp/x rw - nsfs nsfs rw", False),
        ("1 2 0:4 / /misc rw shared:1 - autofs systemd-1 rw", True),
        ("1 2 0:4 / /run/docker/netns/x rw - nsfs nsfs rw", True),
        ("1 2 0:4 / /tmp/docker/x rw - tmpfs tmpfs rw", False),
        ("1 2 0:4 / /tmp/x rw - tmpfs iii-tests rw,size=64k", True),
        ("1 2 7:0 / /run/iii/image ro - squashfs /dev/loop0 ro", False),
    ],
)
def test_what_is_foreign(mount: str, *, foreign: bool) -> None:
    assert is_foreign(mount, {"one"}) is foreign

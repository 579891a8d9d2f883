"""What people are told when something is missing: each message as mount, bwrap or the kernel really words it."""

from __future__ import annotations

from pathlib import Path

import pytest
from iii_sandbox_bubblewrap.remedies import REMEDIES, namespace_remedy, remedy

SAID = {
    "sandbox set-up failed: nothing can be mounted on /m: m is a link or file in the image": "name another target",
    "mount bind on /: Invalid argument": "mount --bind FOLDER FOLDER",
    "mount: /x/0123abcd/disk: wrong fs type, bad option, bad superblock on /dev/loop0": "remove the worker",
    "mount: /x/1: unknown filesystem type 'squashfs'.": "modprobe squashfs",
    "mount: /x/1: failed to setup loop device for /x/i.squashfs.": "modprobe loop",
    "mount: /x/1: cannot find any loop device": "modprobe loop",
    "mount: /x/1: mount failed: Operation not permitted.": "/dev/loop-control",
    "squashfuse is not installed": "apt install squashfuse",
    "fuse: device not found, try 'modprobe fuse' first": "modprobe fuse",
    "fusermount3: failed to open /dev/fuse: Permission denied": "chmod 666 /dev/fuse",
    "sandbox set-up failed: [Errno 19] mount overlay on /tmp/root: No such device": "modprobe overlay",
    "sandbox set-up failed: [Errno 1] mount overlay on /tmp/root: Operation not permitted": "Linux 5.11",
    "sandbox set-up failed: [Errno 22] mount overlay on /tmp/root: Invalid argument": "ext4",
    "sandbox set-up failed: the rules of the sandbox's network are refused: nft: Error: x": "modprobe nft_ct",
    "sandbox set-up failed: the uplink of its network did not come up": "iii doctor",
    "bwrap: Unknown option --size": "0.7",
    "bwrap: unknown option --perms": "0.7",
    "sandbox set-up failed: [Errno 28] unshare: No space left on device": "sysctl user.max_user_namespaces",
    "[Errno 28] No space left on device": "iii worker remove NAME",
}


@pytest.mark.parametrize(("message", "hint"), SAID.items())
def test_remedy(message: str, hint: str) -> None:
    found = remedy(message)
    assert found is not None
    assert hint in found


def test_every_remedy_has_a_message() -> None:
    assert {remedy(message) for message in SAID} == {hint for _, hint in REMEDIES}


@pytest.mark.parametrize("message", ["", "bwrap: execvp /run/iii/agent: Exec format error", "something else"])
def test_no_remedy_is_made_up(message: str) -> None:
    assert remedy(message) is None


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("sys/user/max_user_namespaces", "0", "user.max_user_namespaces=15000"),
        ("sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        ("sys/kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"),
    ],
)
def test_namespace_remedy(tmp_path: Path, name: str, value: str, hint: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True)
    file.write_text(f"{1 - int(value)}\n", encoding="ascii")
    assert "container" in namespace_remedy(tmp_path)
    file.write_text(f"{value}\n", encoding="ascii")
    assert namespace_remedy(tmp_path).startswith(f"as root: sysctl {hint}")

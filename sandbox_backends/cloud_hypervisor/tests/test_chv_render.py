"""The whole command line and the whole ``VmConfig``: what is not written here is not given to a VMM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from iii_sandbox_cloud_hypervisor.render import Disk, Guest, misunderstood, render_argv, render_config

from .fake.description import Description

GUEST = Guest(
    vcpus=2,
    memory_mib=512,
    kernel=Path("/k/vmlinux"),
    initramfs=Path("/k/initramfs.cpio"),
    cmdline="console=ttyS0 iii.link=vsock:1024",
    disks=(
        Disk(path=Path("/i/root.squashfs"), serial="iii-root", writable=False),
        Disk(path=Path("/w/data.img"), serial="iii-data", writable=True),
    ),
    link=Path("/r/link"),
    console=Path("/r/console"),
    landlock=True,
)
CONFIG = """
{
  "cpus": {"boot_vcpus": 2, "max_vcpus": 2, "nested": false},
  "memory": {"size": 536870912},
  "payload": {
    "kernel": "/k/vmlinux",
    "initramfs": "/k/initramfs.cpio",
    "cmdline": "console=ttyS0 iii.link=vsock:1024"
  },
  "disks": [
    {"path": "/i/root.squashfs", "readonly": true, "serial": "iii-root", "image_type": "Raw"},
    {"path": "/w/data.img", "readonly": false, "serial": "iii-data", "image_type": "Raw"}
  ],
  "rng": {"src": "/dev/urandom"},
  "serial": {"mode": "File", "file": "/r/console"},
  "console": {"mode": "Off"},
  "vsock": {"cid": 3, "socket": "/r/link"},
  "landlock_enable": true
}
"""
paths = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20).map(
    lambda text: Path("/", text)
)
guests = st.builds(
    Guest,
    vcpus=st.integers(1, 64),
    memory_mib=st.integers(96, 1 << 20),
    kernel=paths,
    initramfs=paths,
    cmdline=st.text(max_size=20),
    disks=st.lists(st.builds(Disk, path=paths, serial=st.text(max_size=20), writable=st.booleans())).map(tuple),
    link=paths,
    console=paths,
    landlock=st.booleans(),
)


@pytest.mark.parametrize("seccomp", [True, False])
def test_command_line(seccomp: bool) -> None:
    argv = render_argv(Path("/usr/bin/cloud-hypervisor"), api=5, events=7, seccomp=seccomp)
    assert " ".join(argv) == (
        f"/usr/bin/cloud-hypervisor --api-socket fd=5 --event-monitor fd=7 --seccomp {str(seccomp).lower()}"
    )


def test_config() -> None:
    assert render_config(GUEST) == json.loads(CONFIG)


@given(guests)
def test_every_config_is_as_described(description: Description, guest: Guest) -> None:
    config = json.loads(json.dumps(render_config(guest)))
    assert description.wrong_value("VmConfig", config) is None


@given(guests)
def test_only_what_was_said_to_be_writable_is(guest: Guest) -> None:
    disks = render_config(guest)["disks"]
    assert [not disk["readonly"] for disk in disks] == [disk.writable for disk in guest.disks]
    assert all(disk["image_type"] == "Raw" for disk in disks)


def test_a_vmm_that_adds_defaults_has_understood() -> None:
    config = render_config(GUEST)
    got = {
        **config,
        "watchdog": False,
        "net": None,
        "fs": [],
        "disks": [{**disk, "direct": False, "id": "_disk0"} for disk in config["disks"]],
    }
    assert misunderstood(config, got) == []


def changed(**changes: Any) -> dict[str, Any]:
    return {**render_config(GUEST), **changes}


def with_disk(**changes: Any) -> dict[str, Any]:
    first, second = render_config(GUEST)["disks"]
    return changed(disks=[{**first, **changes}, second])


@pytest.mark.parametrize(
    ("got", "wrong"),
    [
        (changed(landlock_enable=False), "landlock_enable as False"),
        (changed(net=[{"tap": "tap0"}]), "net as [{'tap': 'tap0'}]"),
        (changed(disks=None), "disks as 0"),
        (changed(disks="many"), "disks as 0"),
        (changed(disks=[*render_config(GUEST)["disks"], {"path": "/etc/shadow"}]), "disks as 3"),
        (changed(disks=[None, None]), "disks[0].path as None"),
        (with_disk(readonly=False), "disks[0].readonly as False"),
        (with_disk(image_type=None), "disks[0].image_type as None"),
        (with_disk(image_type="Qcow2"), "disks[0].image_type as 'Qcow2'"),
        (with_disk(path="/other"), "disks[0].path as '/other'"),
        ({}, "landlock_enable as None"),
    ],
)
def test_a_vmm_that_has_not_understood_what_keeps_the_guest_in(got: dict[str, Any], wrong: str) -> None:
    assert misunderstood(render_config(GUEST), got)[0] == wrong


def test_landlock_that_was_not_asked_for_may_be_missing() -> None:
    config = {**render_config(GUEST), "landlock_enable": False}
    got = dict(config)
    del got["landlock_enable"]
    assert misunderstood(config, got) == []

"""The whole XML of a domain: what is not written here is not given to a guest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from iii_sandbox_libvirt.policy import Accelerator
from iii_sandbox_libvirt.render import Disk, Guest, Share, render

GOLDEN = Path(__file__).parent / "golden"
GUEST = Guest(
    name="iii-0123456789-vm1-box",
    emulator=Path("/usr/bin/qemu-system-x86_64"),
    accelerator=Accelerator.TCG,
    vcpus=1,
    memory_mib=512,
    kernel=Path("/place/kernel"),
    initramfs=Path("/place/initramfs"),
    cmdline="console=ttyS0 quiet iii.link=virtio:iii.agent",
    disks=(
        Disk(path=Path("/place/root"), serial="iii-root", writable=False),
        Disk(path=Path("/place/data"), serial="iii-data", writable=True),
    ),
    link=Path("/place/link"),
    port="iii.agent",
    console=Path("/place/console"),
)
CASES = {
    "tcg": GUEST,
    "kvm": replace(GUEST, accelerator=Accelerator.KVM),
    "limits": replace(GUEST, vcpus=3, memory_mib=96),
    "network": replace(GUEST, network=Path("/place/a,b/net")),
    "keep-owners": replace(GUEST, keep_owners=True),
    "owner": replace(GUEST, owner=(1879113729, 1879113730)),
    "shares": replace(GUEST, shares=(Share(tag="iii-0", socket=Path("/place/share0")),)),
    "hostile-text": replace(GUEST, cmdline="a<b>&\"'c", link=Path("/place/<x>&'\"")),
}


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    assert render(CASES[case]) == (GOLDEN / f"{case}.xml").read_text(encoding="utf-8")


@pytest.mark.parametrize("case", CASES)
def test_no_device_but_those(case: str) -> None:
    xml = render(CASES[case])
    for word in ("<interface", "<graphics", "<hostdev", "<input", "<sound", "<video", "vsock"):
        assert word not in xml

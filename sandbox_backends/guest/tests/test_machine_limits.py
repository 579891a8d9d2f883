"""What the limits of a spec mean for a machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from iii_sandbox_guest import limits as of_machines

from iii_core.errors import SandboxError
from iii_core.sandbox.port import Limits, RootImage, SandboxSpec


@pytest.mark.parametrize(
    ("cpus", "vcpus", "said"), [(None, 1, False), (1, 1, False), (0.5, 1, True), (1.5, 2, True), (1000, 64, True)]
)
def test_processors_are_whole_ones(cpus: float | None, vcpus: int, said: bool) -> None:
    limits = Limits(cpus=cpus)
    assert of_machines.vcpus(limits) == vcpus
    words = " ".join(of_machines.unenforced(limits))
    assert bool(words) is said
    assert not said or f"{vcpus} whole" in words


def test_defaults() -> None:
    assert (of_machines.memory_mib(Limits()), of_machines.disk_mib(Limits())) == (512, 8192)
    assert (of_machines.memory_mib(Limits(memory_mib=300)), of_machines.disk_mib(Limits(disk_mib=20))) == (300, 20)


@pytest.mark.parametrize(("memory", "fine"), [(95, False), (96, True), (None, True)])
def test_memory_that_no_guest_boots_with(memory: int | None, fine: bool) -> None:
    spec = SandboxSpec(
        id="box",
        root=RootImage(path=Path("/image"), format="squashfs", digest=""),
        writable_dir=Path("/layer"),
        console=Path("/console"),
        hostname="box",
        limits=Limits(memory_mib=memory),
    )
    if fine:
        of_machines.check_limits(spec)
        return
    with pytest.raises(SandboxError, match="at least 96 MiB") as caught:
        of_machines.check_limits(spec)
    assert caught.value.hint
    assert caught.value.details == {"sandbox": "box"}

"""What is refused before anything is launched: ids, names, limits and images that no backend could boot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from iii_core.errors import ImageError, SandboxError
from iii_core.sandbox.launcher import check_limits, check_spec
from iii_core.sandbox.port import Limits, RootImage, SandboxSpec


@pytest.fixture
def spec(tmp_path: Path) -> SandboxSpec:
    image = tmp_path / "image"
    image.touch()
    return SandboxSpec(
        id="box",
        root=RootImage(path=image, format="squashfs", digest=""),
        writable_dir=tmp_path / "layer",
        console=tmp_path / "console",
        hostname="box",
    )


@pytest.mark.parametrize("name", ["a", "0", "a-1", "x" * 63])
def test_good_ids(spec: SandboxSpec, name: str) -> None:
    check_spec(replace(spec, id=name, hostname=name))


@pytest.mark.parametrize("name", ["", "A", "-a", "a/b", "..", "x" * 64, "a\n", "\u00e4", "a b", "a.b", "a_b"])
def test_bad_ids(spec: SandboxSpec, name: str) -> None:
    with pytest.raises(SandboxError, match="is no sandbox id"):
        check_spec(replace(spec, id=name))


@pytest.mark.parametrize("name", ["", "-a", "a b", "a\n", "x" * 65, "a_b", "\u00e4"])
def test_bad_host_names(spec: SandboxSpec, name: str) -> None:
    with pytest.raises(SandboxError, match="is no host name"):
        check_spec(replace(spec, hostname=name))


def test_no_image(spec: SandboxSpec) -> None:
    spec.root.path.unlink()
    with pytest.raises(ImageError, match="does not exist") as caught:
        check_spec(spec)
    assert caught.value.hint
    spec.root.path.mkdir()
    with pytest.raises(ImageError):
        check_spec(spec)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(cpus=0),
        Limits(cpus=0.09),
        Limits(cpus=1025),
        Limits(cpus=float("nan")),
        Limits(memory_mib=15),
        Limits(memory_mib=-1),
        Limits(memory_mib=(1 << 30) + 1),
        Limits(disk_mib=15),
        Limits(pids=1),
        Limits(pids=(1 << 22) + 1),
    ],
)
def test_limits_outside_the_ports_ranges(spec: SandboxSpec, limits: Limits) -> None:
    with pytest.raises(SandboxError) as caught:
        check_spec(replace(spec, limits=limits))
    assert caught.value.hint
    assert caught.value.details["limit"] in caught.value.message


@pytest.mark.parametrize(
    "limits", [Limits(), Limits(cpus=0.1, memory_mib=16, pids=2, disk_mib=16), Limits(cpus=1024, pids=1 << 22)]
)
def test_limits_at_the_ends_of_the_ranges(limits: Limits) -> None:
    check_limits(limits)

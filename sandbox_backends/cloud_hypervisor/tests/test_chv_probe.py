"""What the probe says: in words, with a remedy, and never that this backend should be chosen by itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from iii_sandbox_cloud_hypervisor import plugin
from iii_sandbox_cloud_hypervisor.policy import Settings
from iii_sandbox_cloud_hypervisor.probe import probe

from iii_core.records import ProbeResult
from iii_core.sandbox.port import Isolation

from .vmmkit import Bench

pytestmark = pytest.mark.integration


@pytest.fixture
def kvm(tmp_path: Path) -> Path:
    """Stands for the device, which a played VMM does not need."""
    path = tmp_path / "kvm"
    path.touch()
    return path


def settings(bench: Bench, faults: dict[str, Any] | None = None, **more: Any) -> Settings:
    return Settings(program=str(bench.program(faults or {})), **more)


async def test_it_is_never_chosen_by_itself(bench: Bench, kvm: Path) -> None:
    result = await probe(settings(bench), bench.context, kvm=kvm)
    assert result.ok
    assert not result.automatic
    assert result.reason.startswith("experimental")
    assert result.details["version"] == "cloud-hypervisor v99.0"
    assert "PUT vm.boot" in bench.calls()
    assert not (bench.context.runtime_dir / "chvp").exists()


async def test_what_was_found_out_is_kept(bench: Bench, kvm: Path) -> None:
    found = await probe(settings(bench), bench.context, kvm=kvm)
    bench.calls()
    assert (
        await probe(Settings(program=str(bench.context.runtime_dir / "cloud-hypervisor")), bench.context, kvm=kvm)
        == found
    )
    assert bench.calls() == []
    await probe(settings(bench, landlock=False), bench.context, kvm=kvm)
    assert "PUT vm.boot" in bench.calls()


async def test_a_guest_that_hangs_is_not_tried_again(bench: Bench, kvm: Path) -> None:
    chosen = settings(bench, {"vsock": "never"})
    for calls in (True, False):
        result = await probe(chosen, bench.context, kvm=kvm, deadline=5)
        assert not result.ok
        assert "a guest does not boot with it: a guest's agent did not answer within 5 s" in result.reason
        assert bool(bench.calls()) is calls


async def test_a_refusal_is_tried_again(bench: Bench, kvm: Path) -> None:
    chosen = settings(bench, {"at": {"vm.boot": [500, '["cannot open /dev/kvm"]']}})
    for _ in range(2):
        result = await probe(chosen, bench.context, kvm=kvm)
        assert not result.ok
        assert "cannot open /dev/kvm" in result.reason
        assert "/dev/kvm" in str(result.hint)
        assert "PUT vm.boot" in bench.calls()


async def test_nothing_is_installed(bench: Bench) -> None:
    result = await probe(Settings(), replace(bench.context, environ={"PATH": "/nowhere"}))
    assert result == ProbeResult(
        ok=False,
        automatic=False,
        reason="cloud-hypervisor is not installed",
        hint="put the static program of https://github.com/cloud-hypervisor/cloud-hypervisor/releases on PATH, or set "
        "`program` of the cloud-hypervisor backend",
    )


@pytest.mark.parametrize(
    ("program", "words"),
    [("/bin/true", "is not Cloud Hypervisor"), ("/bin/cat", "is not Cloud Hypervisor: it says 'cat")],
)
async def test_another_program(bench: Bench, program: str, words: str) -> None:
    result = await probe(Settings(program=program), bench.context)
    assert not result.ok
    assert words in result.reason


async def test_no_kvm(bench: Bench, tmp_path: Path) -> None:
    result = await probe(settings(bench), bench.context, kvm=tmp_path / "none")
    assert not result.ok
    assert "there is no" in result.reason


async def test_no_kernel(bench: Bench, kvm: Path, tmp_path: Path) -> None:
    empty = replace(bench.context, home=tmp_path / "empty")
    result = await probe(settings(bench, kernel=str(tmp_path / "vmlinux")), empty, kvm=kvm)
    assert not result.ok
    assert result.hint


@pytest.mark.parametrize("wrong", [{"programme": "x"}, {"seccomp": "no"}, {"landlock": 1}, {"kernel": 5}])
def test_settings_that_make_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, Settings)


def test_settings_of_a_configuration() -> None:
    found = msgspec.convert({"kernel": "/boot/vmlinuz", "landlock": False}, Settings, strict=True)
    assert found.kernel_path == Path("/boot/vmlinuz")
    assert found.seccomp


def test_what_is_declared() -> None:
    (backend,) = plugin.iii_sandbox_backends()
    assert backend.name == "cloud-hypervisor"
    assert backend.isolation is Isolation.MICROVM
    assert "experimental" in backend.summary

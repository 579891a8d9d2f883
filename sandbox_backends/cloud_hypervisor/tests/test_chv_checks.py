"""The row of ``iii doctor``: what is missing, and that nothing is wrong with its being missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio
from iii_sandbox_cloud_hypervisor import plugin
from iii_sandbox_cloud_hypervisor.checks import check_cloud_hypervisor

from iii_core.records import CheckResult, OpenContext

from .vmmkit import Bench

VMM = """#!/bin/sh
[ "$1" = --version ] && echo "cloud-hypervisor v99.0"
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "bin" / "cloud-hypervisor"
    path.parent.mkdir()
    path.write_text(VMM, encoding="ascii")
    path.chmod(0o755)
    return path


async def look(bench: Bench, program: Path, kvm: Path) -> CheckResult:
    context: OpenContext = replace(bench.context, environ={"PATH": str(program.parent)})
    return await check_cloud_hypervisor(context, kvm)


async def test_it_is_not_missed(bench: Bench, program: Path) -> None:
    await trio.Path(program).unlink()
    result = await look(bench, program, Path("/nonexistent"))
    assert result.status == "ok"
    assert result.message.startswith("not installed (experimental")
    assert "releases" in (result.hint or "")


async def test_what_is_there_is_named(bench: Bench, program: Path, tmp_path: Path) -> None:
    (tmp_path / "kvm").touch()
    result = await look(bench, program, tmp_path / "kvm")
    assert result.status == "ok"
    assert f"{program}, cloud-hypervisor v99.0" in result.message
    assert "only where `backend: cloud-hypervisor`" in result.message


async def test_without_kvm_it_is_of_no_use(bench: Bench, program: Path, tmp_path: Path) -> None:
    result = await look(bench, program, tmp_path / "kvm")
    assert result.status == "warning"
    assert "there is no" in result.message
    assert "modprobe kvm" in (result.hint or "")


async def test_another_program_of_that_name(bench: Bench, program: Path) -> None:
    await trio.Path(program).write_text("#!/bin/sh\necho hello\n", encoding="ascii")
    result = await look(bench, program, Path("/nonexistent"))
    assert result.status == "warning"
    assert "is not Cloud Hypervisor: it says 'hello'" in result.message


def test_the_row_is_declared() -> None:
    (check,) = plugin.iii_checks()
    assert check.name == "cloud-hypervisor"

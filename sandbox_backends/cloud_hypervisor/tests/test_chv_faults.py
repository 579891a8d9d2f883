"""A VMM that is slow, dead, refuses, talks nonsense or dies: a start fails with words, and leaves nothing."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import trio

from iii_core.errors import BackendUnavailable, BootFailed, BootTimeout, SandboxError
from iii_core.sandbox.port import Limits, Phase, SandboxDriver
from iii_core.testing.sandbox_harness import agent_of, nothing_left, run_well

from .vmmkit import QUICK, Bench

pytestmark = [pytest.mark.integration, pytest.mark.long]
STEPS = ("vmm.ping", "vm.create", "vm.info", "vm.boot")
HASTY = replace(QUICK, call=5, farewell=1)
"""Enough for a Python to start on a busy machine, and tests wait for it in vain."""
FAULTS: dict[str, tuple[Any, str]] = {
    "hang": ("hang", "{step}: the VMM did not answer within 5 s"),
    "refusal": (
        [500, '["Error from API", "it cannot be"]'],
        "{step}: the VMM answered 500: Error from API: it cannot be",
    ),
    "die": ("die", "(signal 9)"),
    "die-after": ("die-after", "(signal 9)"),
}


async def works(driver: SandboxDriver, bench: Bench) -> None:
    """With a VMM that is all right, the same sandbox starts."""
    bench.program({})
    await driver.start("one")
    async with agent_of(driver, "one") as agent:
        assert (await run_well(agent, ["/bin/id", "-u"])).strip() == "0"


@pytest.mark.parametrize(
    ("fault", "step"), [pair for pair in itertools.product(FAULTS, STEPS) if pair != ("die-after", STEPS[-1])]
)
async def test_a_failing_call_fails_the_start(bench: Bench, step: str, fault: str) -> None:
    kind, words = FAULTS[fault]
    async with bench.open({"at": {step: kind}}, patience=HASTY if fault == "hang" else QUICK) as driver:
        await driver.create(bench.spec())
        bench.spec().console.touch(mode=0o600)
        async with nothing_left(bench.under_test()):
            with pytest.raises(BootFailed) as caught:
                await driver.start("one")
        assert words.format(step=step) in caught.value.message
        assert (await driver.state("one")).phase is Phase.CREATED
        assert bench.places() == []
        if step == STEPS[-1]:
            await works(driver, bench)


async def test_a_vmm_that_dies_as_soon_as_its_guest_runs(bench: Bench) -> None:
    """The start may have succeeded by then: the guest can be quicker than the end of the VMM is seen."""
    async with bench.open({"at": {STEPS[-1]: "die-after"}}, patience=QUICK) as driver:
        await driver.create(bench.spec())
        bench.spec().console.touch(mode=0o600)
        async with nothing_left(bench.under_test()):
            with trio.fail_after(40):
                assert "signal 9" in await how_it_ends(driver)
        assert (await driver.state("one")).phase is not Phase.RUNNING
        await works(driver, bench)


async def how_it_ends(driver: SandboxDriver) -> str:
    try:
        await driver.start("one")
    except BootFailed as error:
        return error.message
    return (await driver.events().receive()).exit


@pytest.mark.parametrize("step", STEPS)
async def test_a_slow_answer_is_waited_for(bench: Bench, step: str) -> None:
    async with bench.open({"at": {step: "slow"}}) as driver:
        await driver.create(bench.spec())
        await driver.start("one")
        assert (await driver.state("one")).phase is Phase.RUNNING
    assert [call.partition(" ")[2] for call in bench.calls()][:4] == list(STEPS)


async def test_a_vmm_that_comes_up_late_is_waited_for(bench: Bench) -> None:
    async with bench.open({"start": "pause"}) as driver:
        await driver.create(bench.spec())
        await driver.start("one")


async def test_a_vmm_that_ends_at_once(bench: Bench) -> None:
    async with bench.open({"start": "die"}) as driver:
        await driver.create(bench.spec())
        with pytest.raises(BootFailed, match=r"\(exit 1\): Error: it is not to be") as caught:
            await driver.start("one")
        assert caught.value.details["console"] == "Error: it is not to be"
        assert bench.console() == "Error: it is not to be\n"
        await works(driver, bench)


@pytest.mark.parametrize(
    ("faults", "kind", "words"),
    [
        ({"start": "deaf"}, BootFailed, "vmm.ping: the VMM did not answer within 5 s"),
        ({"at": {"vm.boot": "ignore"}}, BootTimeout, "did not boot within 8 s"),
        ({"vsock": "never"}, BootTimeout, "did not boot within 8 s"),
        ({"vsock": "no-socket"}, BootTimeout, "did not boot within 8 s"),
        ({"vsock": "garbage"}, BootFailed, r"the VMM's vsock socket answered b'\\x00what?\\n'"),
        ({"after-boot": "die"}, BootFailed, "(signal 9)"),
        ({"after-boot": "reboot"}, BootFailed, "(reboot)"),
    ],
)
async def test_a_machine_that_does_not_come_up(
    bench: Bench, faults: dict[str, Any], kind: type[SandboxError], words: str
) -> None:
    async with bench.open(faults, patience=replace(HASTY, boot=8)) as driver:
        await driver.create(bench.spec())
        with pytest.raises(kind) as caught:
            await driver.start("one")
        assert words.replace("\\\\", "\\") in caught.value.message
        assert bench.places() == []


@pytest.mark.parametrize("forgotten", ["image_type", "readonly", "landlock_enable", "disks"])
async def test_a_vmm_that_does_not_know_what_keeps_the_guest_in(bench: Bench, forgotten: str) -> None:
    async with bench.open({"forgets": [forgotten]}) as driver:
        await driver.create(bench.spec())
        with pytest.raises(BootFailed, match=f"misunderstood .*{forgotten}") as caught:
            await driver.start("one")
        assert caught.value.hint == "a newer cloud-hypervisor is needed"
    assert "PUT vm.boot" not in bench.calls()


async def test_a_kernel_without_landlock_is_explained(bench: Bench) -> None:
    refusal = [500, '["Error from API", "Error applying Landlock rules"]']
    async with bench.open({"at": {"vm.create": refusal}}) as driver:
        await driver.create(bench.spec())
        with pytest.raises(BootFailed) as caught:
            await driver.start("one")
        assert "`landlock: false`" in str(caught.value.hint)


async def test_nonsense_among_the_events_is_skipped(bench: Bench) -> None:
    async with bench.open({"events": '{"source": ]\n\n\u0000{{{\n\n'}) as driver:
        await driver.create(bench.spec())
        await driver.start("one")
        async with agent_of(driver, "one") as agent:
            await run_well(agent, ["/bin/id", "-u"])


async def test_a_program_that_has_gone(bench: Bench) -> None:
    async with bench.open() as driver:
        await driver.create(bench.spec())
        (bench.context.runtime_dir / "cloud-hypervisor").unlink()
        with pytest.raises(BackendUnavailable, match="cannot start"):
            await driver.start("one")
        assert bench.places() == []
        await works(driver, bench)


async def test_a_program_that_was_never_there(bench: Bench) -> None:
    bench.program({})
    (bench.context.runtime_dir / "cloud-hypervisor").chmod(0o644)
    with pytest.raises(BackendUnavailable, match="is not installed"):
        async with bench.open_as_is():
            raise AssertionError


async def test_too_little_memory(bench: Bench) -> None:
    async with bench.open() as driver:
        with pytest.raises(SandboxError, match="at least 96 MiB"):
            await driver.create(bench.spec(limits=Limits(memory_mib=64)))


async def test_what_a_predecessor_left_is_removed(bench: Bench) -> None:
    left = bench.context.runtime_dir / "chv" / "abc"
    left.mkdir(parents=True)
    (left / "api").touch()
    async with bench.open():
        assert bench.places() == []
    assert not left.parent.exists()

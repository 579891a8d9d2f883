"""What a supervisor does when its worker ends, fails, is stopped, started, replaced; on a clock that jumps."""

from __future__ import annotations

import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from iii_core.errors import (
    IIIError,
    ImageNotFound,
    ProcessSpawnError,
    RegistryUnreachable,
    SandboxRefused,
    StartTimeout,
    UnsetVariable,
    UsageError,
    WorkerNotRunning,
)
from iii_core.sandbox.port import Phase as SandboxPhase
from iii_core.testing.memory_backend import MemoryProcess
from iii_core.workers.logs import LOG_FILE
from iii_core.workers.manager import WorkerManager
from iii_core.workers.state import Phase

from .workerbench import SANDBOX, ends_with, open_bench, run_on, spec_of


@pytest.fixture
def anyio_backend(no_threads: None) -> tuple[str, dict[str, Any]]:
    """Nothing here waits for anything outside, so time may jump."""
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0.005)}


async def polite(process: MemoryProcess) -> int:
    await process.trap(signal.SIGTERM).wait()
    return 0


async def stubborn(process: MemoryProcess) -> int:
    process.trap(signal.SIGTERM)
    return await run_on(process)


async def test_running_is_what_the_engine_sees(tmp_path: Path) -> None:
    async with open_bench(tmp_path, run_on) as bench:
        await bench.until(Phase.STARTING)
        bench.engine.see(True)
        await bench.supervisor.ready(10)
        assert bench.supervisor.phase is Phase.RUNNING
        assert bench.supervisor.agent()[1].argv == ("worker",)
        bench.engine.see(False)
        await bench.until(Phase.STARTING)


async def test_a_worker_that_has_done_its_work_stays_stopped(tmp_path: Path) -> None:
    async with open_bench(tmp_path, ends_with(0)) as bench:
        await bench.until(Phase.STOPPED)
        await trio.sleep(100)
        assert len(bench.starts) == 1
        facts = bench.supervisor.as_json()
        assert (facts["status"], facts["restarts"], facts["last_exit"]) == ("stopped", 0, "exit 0")
        assert (facts["error"], facts["pid"]) == (None, None)
        with pytest.raises(WorkerNotRunning, match="ended before it registered \\(exit 0\\)"):
            await bench.supervisor.ready(10)


async def test_one_that_fails_is_restarted_after_growing_delays(tmp_path: Path) -> None:
    async with open_bench(tmp_path, ends_with(3)) as bench:
        await bench.began(8)
        delays = [round(later - sooner) for sooner, later in pairwise(bench.starts)]
        assert delays == [1, 2, 4, 8, 16, 30, 30]
        await bench.until(Phase.RESTARTING)
        facts = bench.supervisor.as_json()
        assert (facts["restarts"], facts["last_exit"]) == (8, "exit 3")
        assert "iii: worker exited with exit 3" in bench.log(".1")


async def test_after_a_steady_run_the_delay_is_short_again(tmp_path: Path) -> None:
    async with open_bench(tmp_path, ends_with(3, after=31)) as bench:
        await bench.began(5)
        assert [round(later - sooner) for sooner, later in pairwise(bench.starts)] == [32] * 4


async def test_what_cannot_work_is_not_tried_again_until_somebody_says_so(tmp_path: Path) -> None:
    async with open_bench(tmp_path, run_on, spec=spec_of("no-such-program")) as bench:
        await bench.until(Phase.FAILED)
        await trio.sleep(100)
        assert bench.supervisor.history.restarts == 0
        with pytest.raises(ProcessSpawnError):
            await bench.supervisor.ready(10)
        assert bench.supervisor.as_json()["error"]["code"] == "W242"
        assert "iii: [W242] " in bench.log()
        bench.supervisor.replace(spec_of())
        await bench.until(Phase.STARTING)
        bench.engine.see(True)
        await bench.supervisor.ready(10)
        assert bench.supervisor.as_json()["error"] is None


@pytest.mark.parametrize("error", [SandboxRefused("a disk cannot shrink"), UsageError("no such thing")])
async def test_what_no_sandbox_or_agent_can_be_asked_fails_at_once(tmp_path: Path, error: IIIError) -> None:
    async with open_bench(tmp_path, run_on, run=False) as bench:
        bench.images.error = error
        bench.nursery.start_soon(bench.supervisor.run)
        await bench.until(Phase.FAILED)
        assert bench.supervisor.as_json()["error"]["code"] == error.code


async def test_a_problem_of_the_declaration_fails_at_once(tmp_path: Path) -> None:
    problem = UnsetVariable("worker 'w': NOPE is not set")
    async with open_bench(tmp_path, run_on, spec=spec_of(problem=problem)) as bench:
        await bench.until(Phase.FAILED)
        with pytest.raises(UnsetVariable):
            await bench.supervisor.ready(10)
        assert bench.starts == []


async def test_a_registry_that_does_not_answer_is_asked_again_and_an_unknown_image_is_not(tmp_path: Path) -> None:
    async with open_bench(tmp_path, run_on, run=False) as bench:
        bench.images.error = RegistryUnreachable("no answer")
        bench.nursery.start_soon(bench.supervisor.run)
        await bench.until(Phase.RESTARTING)
        assert "iii: [W221] no answer" in bench.log()
        bench.images.error = None
        await bench.until(Phase.STARTING)
        bench.images.error = ImageNotFound("no such image")
        bench.supervisor.restart()
        await bench.until(Phase.FAILED)


async def test_an_error_that_is_nobodys_is_this_workers_trouble_alone(tmp_path: Path) -> None:
    async with open_bench(tmp_path, run_on, run=False) as bench:
        bench.images.error = ValueError("a bug")
        bench.nursery.start_soon(bench.supervisor.run)
        await bench.until(Phase.RESTARTING)
        assert "iii: ValueError('a bug')" in bench.log()


async def test_a_sandbox_that_dies_is_reported_and_replaced(tmp_path: Path) -> None:
    async with open_bench(tmp_path, run_on) as bench:
        await bench.until(Phase.STARTING)
        bench.backend.crash(SANDBOX, "signal 11")
        await bench.until(Phase.RESTARTING)
        facts = bench.supervisor.as_json()
        assert facts["error"]["code"] == "W234"
        assert facts["last_exit"] == "its sandbox ended by itself (signal 11)"
        assert "iii: [W234] the sandbox of worker 'w' ended by itself (signal 11)" in bench.log()
        assert "iii: console: memory: booting" in bench.log()
        with pytest.raises(WorkerNotRunning):
            bench.supervisor.agent()
        await bench.until(Phase.STARTING)
        assert bench.supervisor.history.restarts == 1
        assert len(bench.starts) == 2


async def test_a_boot_that_fails_is_tried_again(tmp_path: Path) -> None:
    async with open_bench(tmp_path, run_on, run=False) as bench:
        bench.backend.boot_error = "no disk"
        bench.nursery.start_soon(bench.supervisor.run)
        await bench.until(Phase.RESTARTING)
        assert "iii: console: no disk" in bench.log()
        bench.backend.boot_error = None
        await bench.until(Phase.STARTING)


@pytest.mark.parametrize(("program", "told", "seconds"), [(polite, "exit 0", 0), (stubborn, "signal 9", 10)])
async def test_a_stop_asks_then_kills(tmp_path: Path, program: Any, told: str, seconds: int) -> None:
    async with open_bench(tmp_path, program) as bench:
        await bench.until(Phase.STARTING)
        await trio.sleep(1)
        begun = trio.current_time()
        bench.supervisor.request_stop()
        await bench.supervisor.stopped()
        assert round(trio.current_time() - begun) == seconds
        assert bench.supervisor.phase is Phase.STOPPED
        assert f"iii: worker exited with {told}" in bench.log()
        await trio.sleep(100)
        assert len(bench.starts) == 1


async def test_a_stop_while_preparing_or_booting_does_not_wait(tmp_path: Path) -> None:
    async with open_bench(tmp_path, run_on, run=False) as bench:
        bench.images.delay = 1000
        bench.backend.boot_delay = 1000
        bench.nursery.start_soon(bench.supervisor.run)
        await bench.until(Phase.PREPARING)
        for _ in range(2):
            begun = trio.current_time()
            bench.supervisor.request_stop()
            await bench.supervisor.stopped()
            assert trio.current_time() - begun < 5
            bench.images.delay = 0
            bench.supervisor.start()
            await bench.until(Phase.BOOTING)
        assert bench.starts == []


@pytest.mark.parametrize("started", [False, True])
async def test_a_stop_between_runs_is_at_once(tmp_path: Path, started: bool) -> None:
    """Before the supervisor has begun its first run, or a further one, there is nothing to wait for."""
    async with open_bench(tmp_path, ends_with(0), run=False) as bench:
        if started:
            bench.nursery.start_soon(bench.supervisor.run)
            await bench.until(Phase.STOPPED)
            bench.supervisor.start()
        else:
            bench.nursery.start_soon(bench.supervisor.run)
        bench.supervisor.request_stop()
        with trio.fail_after(1):
            await bench.supervisor.stopped()
        await trio.sleep(100)
        assert len(bench.starts) == started
        bench.supervisor.start()
        await bench.until(Phase.STOPPED)
        await trio.sleep(1)
        assert len(bench.starts) == started + 1


async def test_a_stop_and_a_start_while_it_waits_to_be_restarted(tmp_path: Path) -> None:
    async with open_bench(tmp_path, ends_with(3)) as bench:
        await bench.began(5)
        await bench.until(Phase.RESTARTING)  # for 16 s
        begun = trio.current_time()
        bench.supervisor.start()
        await bench.until(Phase.RESTARTING)
        await bench.began(6)
        assert trio.current_time() - begun < 1
        bench.supervisor.request_stop()
        with trio.fail_after(1):
            await bench.supervisor.stopped()
        await trio.sleep(100)
        assert len(bench.starts) == 6


async def test_a_restart_is_another_run_with_what_is_declared_now(tmp_path: Path) -> None:
    async with open_bench(tmp_path, polite) as bench:
        await bench.until(Phase.STARTING)
        bench.supervisor.replace(spec_of(env={"A": "1"}))
        assert bench.supervisor.phase is Phase.STOPPING
        await bench.until(Phase.STARTING)
        assert bench.supervisor.agent()[1].env["A"] == "1"
        assert bench.supervisor.history.restarts == 0, "nobody failed"
        bench.supervisor.request_stop()
        await bench.supervisor.stopped()
        bench.supervisor.replace(spec_of(env={"A": "2"}))
        await trio.sleep(100)
        assert bench.supervisor.phase is Phase.STOPPED, "one that was stopped stays so"
        assert len(bench.starts) == 2


async def test_ready_does_not_wait_for_ever(tmp_path: Path) -> None:
    async with open_bench(tmp_path, run_on) as bench:
        begun = trio.current_time()
        with pytest.raises(StartTimeout, match="not ready after 7 s \\(starting\\)"):
            await bench.supervisor.ready(7)
        assert round(trio.current_time() - begun) == 7


async def test_nobody_waits_for_one_that_fails_over_and_over(tmp_path: Path) -> None:
    async with open_bench(tmp_path, ends_with(3)) as bench:
        for _ in range(2):
            begun, runs = trio.current_time(), len(bench.starts)
            with pytest.raises(WorkerNotRunning, match="ended with exit 3") as caught:
                await bench.supervisor.ready(120)
            assert len(bench.starts) == runs + 3
            assert caught.value.hint is not None
            assert caught.value.hint.startswith(
                "it has failed 3 times in a row and is tried again: see 'iii worker logs"
            )
            bench.supervisor.start()  # with a short delay again
        assert trio.current_time() - begun < 10
        await bench.began(8)
        assert bench.supervisor.as_json()["error"]["hint"] == "see 'iii worker logs w'"


async def test_one_that_fails_twice_and_then_runs_is_waited_for(tmp_path: Path) -> None:
    runs: list[int] = []

    async def third_time_lucky(process: MemoryProcess) -> int:
        runs.append(1)
        if len(runs) < 3:
            return 3
        bench.engine.see(True)
        return await run_on(process)

    async with open_bench(tmp_path, third_time_lucky) as bench:
        await bench.supervisor.ready(120)
        assert bench.supervisor.history.restarts == 2


async def test_cancelling_leaves_no_sandbox(tmp_path: Path) -> None:
    async with open_bench(tmp_path, stubborn, run=False) as bench:
        driver = (await bench.services.sandboxes.backend("memory")).driver
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bench.supervisor.run)
                await bench.until(Phase.STARTING)
                assert (await driver.state(SANDBOX)).phase is SandboxPhase.RUNNING
                scope.cancel()
        with pytest.raises(Exception, match="there is no sandbox"):
            await driver.state(SANDBOX)


async def test_the_manager_starts_keeps_replaces_and_ends(tmp_path: Path) -> None:
    async with open_bench(tmp_path, polite, run=False) as bench:
        manager = WorkerManager(bench.nursery, bench.services, project=tmp_path, state_dir=tmp_path)
        one, two = spec_of(name="one"), spec_of(name="two")
        await manager.apply({"one": one, "two": two})
        kept = manager.get("one")
        changed = manager.get("two")
        await bench.began(2)
        await manager.apply({"one": one, "two": spec_of(name="two", env={"A": "1"}), "three": spec_of(name="three")})
        await bench.began(4)
        await trio.sleep(10)
        assert len(bench.starts) == 4
        assert manager.get("one") is kept
        assert kept.phase is Phase.STARTING
        assert changed.spec.env == {"A": "1"}
        await manager.apply({"one": one})
        assert list(manager.workers) == ["one"]
        assert changed.phase is Phase.STOPPED
        assert "worker exited with exit 0" in (tmp_path / "logs" / "two" / LOG_FILE).read_text()
        with pytest.raises(Exception, match=r"not in config\.yaml"):
            manager.get("two")
        await manager.apply({"one": one, "four": spec_of(name="four")})
        with trio.fail_after(5):
            await manager.stop_all()  # also the one that has only just been declared
        assert manager.workers == {}
        assert kept.phase is Phase.STOPPED


async def test_what_happens_while_it_is_stopped_is_no_failure(tmp_path: Path) -> None:
    """Neither a registration that comes late nor a sandbox that dies over it brings the worker back."""
    async with open_bench(tmp_path, stubborn) as bench:
        await bench.until(Phase.STARTING)
        bench.supervisor.request_stop()
        await bench.until(Phase.STOPPING)
        bench.engine.see(True)
        await trio.sleep(1)
        assert bench.supervisor.phase is Phase.STOPPING
        bench.backend.crash(SANDBOX)
        await bench.supervisor.stopped()
        await trio.sleep(100)
        facts = bench.supervisor.as_json()
        assert (facts["status"], facts["restarts"], facts["error"]) == ("stopped", 0, None)
        assert "W234" not in bench.log()
        assert len(bench.starts) == 1


async def test_what_it_wrote_is_there_in_the_next_run(tmp_path: Path) -> None:
    found: list[bool] = []

    async def program(process: MemoryProcess) -> int:
        found.append(process.path("/state").exists())
        process.path("/state").write_text("kept")
        await trio.lowlevel.checkpoint()
        return 3

    async with open_bench(tmp_path, program) as bench:
        await bench.began(2)
        await bench.until(Phase.RESTARTING)
    assert found[:2] == [False, True]


async def test_a_sandbox_that_dies_over_a_restart_is_no_failure_either(tmp_path: Path) -> None:
    async with open_bench(tmp_path, stubborn) as bench:
        await bench.until(Phase.STARTING)
        bench.supervisor.restart()
        begun = trio.current_time()
        bench.backend.crash(SANDBOX)
        await bench.began(2)
        assert trio.current_time() - begun < 1
        assert bench.supervisor.history.restarts == 0

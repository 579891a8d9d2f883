"""Workers that are saved while they run and started from that: the decisions, with the memory backend's sandboxes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from iii_core.errors import SandboxError, UnsupportedOperation, WorkerNotRunning
from iii_core.sandbox.agent import Agent
from iii_core.sandbox.port import Egress, Mount
from iii_core.testing.memory_backend import MemoryProcess
from iii_core.workers import run as run_module
from iii_core.workers import saving
from iii_core.workers.state import Phase

from .snapshotbench import Worker, being_saved, open_world, ready, states, stop
from .workerbench import Bench, open_bench, spec_of


@pytest.fixture
def anyio_backend() -> str:
    """Files are saved in threads, so time must not jump."""
    return "trio"


async def test_saved_it_runs_on_and_starts_from_there(tmp_path: Path) -> None:
    worker = Worker()
    async with open_world(tmp_path, worker) as bench:
        await ready(bench)
        (pid,) = {process.pid for process in worker.processes}
        worker.processes[0].path("/workspace/note").write_text("saved")
        facts = await bench.supervisor.snapshot()
        assert facts["image"] == "worker"
        await ready(bench)
        assert (worker.began, worker.connections) == ([False], 2)
        assert bench.supervisor.history.restarts == 0
        worker.processes[0].path("/workspace/note").write_text("later")
        await stop(bench)
        bench.supervisor.start()
        await ready(bench)
        assert worker.began == [False, True]
        assert worker.processes[-1].pid == pid
        assert worker.processes[-1].path("/workspace/note").read_text() == "saved", "its files are of that time"
        assert bench.supervisor.as_json()["warm"] is True
        assert len(states(tmp_path)) == 2
        bench.supervisor.restart(cold=True)
        await bench.began(3)
        await ready(bench)
        assert worker.began[-1] is False
        assert bench.supervisor.as_json()["warm"] is False


async def test_a_second_snapshot_replaces_the_first_also_from_a_copy(tmp_path: Path) -> None:
    worker = Worker()
    async with open_world(tmp_path, worker) as bench:
        await ready(bench)
        await bench.supervisor.snapshot()
        first = states(tmp_path)
        await ready(bench)
        bench.supervisor.restart()
        await bench.began(2)
        await ready(bench)
        await bench.supervisor.snapshot()
        await ready(bench)
        second = states(tmp_path)
        assert (len(first), len(second)) == (2, 2)
        assert first != second
        assert worker.began == [False, True]


async def test_output_and_log_go_on(tmp_path: Path) -> None:
    class Talks(Worker):
        async def __call__(self, process: MemoryProcess) -> int | None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.talk, process)
                status = await super().__call__(process)
            return status  # noqa: RET504 - not inside the nursery's block

        async def talk(self, process: MemoryProcess) -> None:
            for number in range(200):
                await process.write(f"{number}\n".encode())
                await trio.sleep(0.005)

    async with open_world(tmp_path, Talks()) as bench:
        await ready(bench)
        await bench.supervisor.snapshot()
        await ready(bench)
        with trio.fail_after(10):
            while "stdout: 199\n" not in bench.log():  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert [line for line in bench.log().splitlines() if line.startswith("stdout")] == [
            f"stdout: {number}" for number in range(200)
        ]


async def test_a_failed_save_disturbs_nothing_but_the_connection(tmp_path: Path) -> None:
    """Before its link broke (no next link) and after."""
    worker = Worker()
    async with open_world(tmp_path, worker) as bench:
        await ready(bench)
        await bench.supervisor.snapshot()
        await ready(bench)
        kept = states(tmp_path)
        bench.backend.save_error = "no room"
        with pytest.raises(SandboxError, match="no room"):
            await bench.supervisor.snapshot()
        await ready(bench)
        assert states(tmp_path) == kept
        bench.backend.save_error = None
        bench.backend.save_delay = 60
        with trio.move_on_after(1) as scope:
            await bench.supervisor.snapshot()
        assert scope.cancelled_caught
        await ready(bench)
        assert states(tmp_path) == kept
        bench.backend.save_delay = 0
        await bench.supervisor.snapshot()
        await ready(bench)
        assert worker.began == [False]
        assert bench.supervisor.history.restarts == 0


async def test_cancelled_at_any_moment_it_runs_on(tmp_path: Path) -> None:
    worker = Worker()
    async with open_world(tmp_path, worker) as bench:
        bench.backend.save_delay = 0.05
        saved = False
        for milliseconds in range(0, 160, 8):
            await ready(bench)
            with trio.move_on_after(milliseconds / 1000) as scope:
                await bench.supervisor.snapshot()
            saved = saved or not scope.cancelled_caught or bool(states(tmp_path))
            assert len(states(tmp_path)) == (2 if saved else 0), "the state before, or the state after"
        await ready(bench)
        assert worker.began == [False]


async def test_stopped_while_it_is_saved(tmp_path: Path) -> None:
    worker = Worker()
    async with open_world(tmp_path, worker) as bench:
        await ready(bench)
        bench.backend.save_delay = 60
        async with trio.open_nursery() as nursery:

            async def save() -> None:
                with pytest.raises(WorkerNotRunning, match="stopped before it was saved"):
                    await bench.supervisor.snapshot()

            nursery.start_soon(save)
            await being_saved(bench)
            await stop(bench)
        assert bench.supervisor.phase is Phase.STOPPED
        assert states(tmp_path) == []


async def test_its_sandbox_ends_while_it_is_saved(tmp_path: Path) -> None:
    worker = Worker()
    async with open_world(tmp_path, worker) as bench:
        await ready(bench)
        bench.backend.save_delay = 60
        async with trio.open_nursery() as nursery:

            async def save() -> None:
                with pytest.raises(SandboxError, match="ended while it was saved"):
                    await bench.supervisor.snapshot()

            nursery.start_soon(save)
            await being_saved(bench)
            bench.backend.crash("w-1")
        await ready(bench)
        assert worker.began == [False, False]
        assert bench.supervisor.history.restarts == 1
        assert states(tmp_path) == []


async def test_the_process_ends_while_it_is_saved(tmp_path: Path) -> None:
    worker = Worker()
    async with open_world(tmp_path, worker) as bench:
        await ready(bench)
        bench.backend.save_delay = 0.3
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.supervisor.snapshot)
            await being_saved(bench)
            worker.processes[0].kill(15)
            await bench.until(Phase.RESTARTING)
            assert bench.supervisor.history.last_exit == "signal 15"


async def test_who_fails_is_started_afresh(tmp_path: Path) -> None:
    """No crash loop from a snapshot: what somebody asks for is warm, what follows a failure is cold."""
    worker = Worker()
    async with open_world(tmp_path, worker) as bench:
        await ready(bench)
        await bench.supervisor.snapshot()
        bench.supervisor.restart()
        await bench.began(2)
        await ready(bench)
        bench.backend.crash("w-1")
        await bench.began(3)
        await ready(bench)
        assert worker.began == [False, True, False]
        bench.supervisor.restart()
        await bench.began(4)
        await ready(bench)
        assert worker.began[-1] is True


@pytest.mark.parametrize("damage", ["state", "record", "format", "image"])
async def test_what_cannot_be_used_is_a_note_and_a_cold_start(tmp_path: Path, damage: str) -> None:
    worker = Worker()
    async with open_world(tmp_path, worker) as bench:
        await ready(bench)
        await bench.supervisor.snapshot()
        await stop(bench)
        record = tmp_path / "snapshots" / "snapshot.json"
        (state,) = (tmp_path / "snapshots").glob("state-*")
        match damage:
            case "state":
                (state / "guest.json").write_text("{")
            case "record":
                record.write_text("{")
            case "format":
                record.write_text(record.read_text().replace('"format":1', '"format":9'))
            case _:
                bench.images.digest = f"sha256:{1:064}"
        bench.supervisor.start()
        await ready(bench)
        assert worker.began == [False, False]
        assert "iii: not started from its snapshot, but afresh: [W238]" in bench.log()
        assert bench.supervisor.history.restarts == 0
        assert bench.supervisor.as_json()["warm"] is False


async def test_other_settings_start_afresh(tmp_path: Path) -> None:
    worker = Worker()
    async with open_world(tmp_path, worker) as bench:
        await ready(bench)
        await bench.supervisor.snapshot()
        bench.supervisor.replace(spec_of(env={"LEVEL": "2"}))
        await bench.began(2)
        await ready(bench)
        assert worker.began == [False, False]
        assert "of another environment" in bench.log()


async def test_who_does_not_wake_up_is_started_afresh_in_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "WARM_READY_TIMEOUT", 0.3)

    class Sleeper(Worker):
        async def __call__(self, process: MemoryProcess) -> int | None:
            if process.restored and self.exit is None:
                self.began.append(True)
                bench.started.unpark_all()
                await trio.sleep_forever()
            return await super().__call__(process)

    worker = Sleeper()
    async with open_world(tmp_path, worker) as bench:
        await ready(bench)
        await bench.supervisor.snapshot()
        await stop(bench)
        bench.supervisor.start()
        await ready(bench)
        assert worker.began == [False, True, False]
        assert "[W238] worker 'w' did not connect within 0.3 s after it was restored" in bench.log()
        assert "did not wake up from its snapshot, and is started afresh" in bench.log()
        assert bench.supervisor.history.restarts == 0


async def test_who_does_not_come_back_is_saved_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "COME_BACK_PATIENCE", 0.2)
    worker = Worker()
    async with open_world(tmp_path, worker) as bench:
        await ready(bench)
        worker.comes_back = False
        await bench.supervisor.snapshot()
        assert len(states(tmp_path)) == 2
        assert bench.supervisor.phase is Phase.STARTING


async def test_who_may_not_be_saved_is_not_disturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker()
    async with open_world(tmp_path, worker) as bench:
        run = bench.supervisor
        await ready(bench)
        live = run._run
        assert live is not None
        for spec, words in (
            (replace(live.spec, egress=Egress()), "network access"),
            (replace(live.spec, mounts=(Mount(source=tmp_path, target="/m"),)), "mounts"),
        ):
            before, live.spec = live.spec, spec
            await refused(bench, words)
            live.spec = before
        record = live.state.backend
        assert record is not None
        live.state.backend = replace(record, capabilities=frozenset())
        await refused(bench, "sandbox backend memory does not support snapshots")
        live.state.backend = record
        sandbox = live.state.sandbox
        assert sandbox is not None
        live.state.sandbox = replace(sandbox, not_saveable="it stands on its head")
        await refused(bench, "stands on its head")
        live.state.sandbox = sandbox
        with monkeypatch.context() as patch:
            patch.setattr(Agent, "hands_over", property(lambda _: False))
            await refused(bench, "too old to be saved")
        assert (worker.began, worker.connections <= 1, states(tmp_path)) == ([False], True, [])
        bench.engine.see(False)
        await bench.until(Phase.STARTING)
        with pytest.raises(WorkerNotRunning, match="not ready to be saved"):
            await bench.supervisor.snapshot()


async def refused(bench: Bench, words: str) -> None:
    with pytest.raises(UnsupportedOperation, match=words) as caught:
        await bench.supervisor.snapshot()
    assert caught.value.code == "W236"
    assert caught.value.hint
    assert caught.value.details["backend"] == "memory"


async def test_one_at_a_time(tmp_path: Path) -> None:
    worker = Worker()
    async with open_world(tmp_path, worker) as bench:
        await ready(bench)
        bench.backend.save_delay = 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.supervisor.snapshot)
            await being_saved(bench)
            with pytest.raises(WorkerNotRunning, match="saving"):
                await bench.supervisor.snapshot()
        assert len(states(tmp_path)) == 2


async def test_none_where_nothing_runs(tmp_path: Path) -> None:
    async with open_bench(tmp_path, Worker(), run=False) as bench:
        with pytest.raises(WorkerNotRunning):
            await bench.supervisor.snapshot()
    assert states(tmp_path) == []

"""A supervisor and the settings of its worker's sandbox, what it tells, and sandboxes that stand still."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from iii_core.errors import UnsetVariable
from iii_core.project.sandbox_settings import UserIds
from iii_core.sandbox.port import Mount
from iii_core.testing.memory_backend import MemoryProcess
from iii_core.workers.state import Phase

from .workerbench import SANDBOX, ends_with, open_bench, run_on, spec_of


@pytest.fixture
def anyio_backend(no_threads: None) -> tuple[str, dict[str, Any]]:
    """Nothing here waits for anything outside, so time may jump."""
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0.005)}


async def test_what_it_fails_of_is_told_once_where_the_engine_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_bench(tmp_path, ends_with(3)) as bench:
        await bench.began(4)
        told = [record.getMessage() for record in caplog.records]
        text = "worker 'w' is started again: [W113] worker 'w' ended with exit 3 (hint: see 'iii worker logs w')"
        assert told == [text]
        bench.supervisor.request_stop()
        await bench.until(Phase.STOPPED)


async def test_after_it_was_ready_the_same_failure_is_told_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_bench(tmp_path, ends_with(3, after=5)) as bench:
        for _ in range(2):
            await bench.until(Phase.STARTING)
            bench.engine.see(True)
            await bench.until(Phase.RUNNING)
            bench.engine.see(False)
            await bench.until(Phase.RESTARTING)
        assert len(caplog.records) == 2


async def test_a_problem_in_new_settings_leaves_a_running_worker_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_bench(tmp_path, run_on) as bench:
        await bench.until(Phase.STARTING)
        bench.engine.see(True)
        await bench.until(Phase.RUNNING)
        old = bench.supervisor.spec
        bench.supervisor.replace(spec_of(problem=UnsetVariable("NOPE is not set")))
        await trio.sleep(10)
        assert (bench.supervisor.phase, bench.supervisor.spec, len(bench.starts)) == (Phase.RUNNING, old, 1)
        told = "its settings in config.yaml are not in use: [W133] NOPE is not set"
        assert told in bench.supervisor.as_json()["notes"]
        assert "worker 'w' goes on as it is: [W133] NOPE is not set" in caplog.text
        bench.supervisor.keep()  # the settings are the old ones again
        assert told not in bench.supervisor.as_json()["notes"]
        bench.supervisor.replace(spec_of(env={"NEW": "1"}))
        await bench.began(2)


async def test_in_a_sandbox_with_one_user_it_runs_as_that(tmp_path: Path) -> None:
    seen: list[int] = []

    async def program(process: MemoryProcess) -> int:
        seen.append(process.uid)
        return await run_on(process)

    async with open_bench(tmp_path, program, spec=spec_of(user=UserIds(uid=1000, gid=100)), run=False) as bench:
        bench.backend.single_user = True
        bench.nursery.start_soon(bench.supervisor.run)
        await bench.began(1)
        await bench.until(Phase.STARTING)
        note = "user 1000:100 is not there: it runs as the only user of its sandbox, 0:0"
        assert note in bench.supervisor.as_json()["notes"]
        bench.backend.single_user = False
        bench.supervisor.restart()
        await bench.began(2)
        assert seen == [0, 1000]
        assert note not in bench.supervisor.as_json()["notes"]


async def test_a_folder_to_mount_must_be_there(tmp_path: Path) -> None:
    mount = Mount(source=tmp_path / "missing", target="/x")
    async with open_bench(tmp_path, run_on, spec=spec_of(mounts=(mount,))) as bench:
        await bench.until(Phase.FAILED)
        assert f"{tmp_path}/missing is to be mounted, and is no folder" in bench.log()


async def test_a_frozen_sandbox_is_ended_and_the_worker_started_again(tmp_path: Path) -> None:
    async with open_bench(tmp_path, run_on) as bench:
        await bench.until(Phase.STARTING)
        bench.backend.freeze(SANDBOX)
        await bench.began(2)
        error = bench.supervisor.as_json()["error"]
        assert error["code"] == "W234"
        assert error["message"] == "the sandbox of worker 'w' did not answer any more, and was ended"
        assert (bench.supervisor.history.last_exit or "").endswith("(frozen)")

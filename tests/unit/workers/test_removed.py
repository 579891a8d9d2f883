"""What a removed worker has written goes at once, and takes nothing with it of who comes after it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from iii_core.testing.memory_backend import MemoryProcess
from iii_core.workers.logs import LOG_FILE
from iii_core.workers.manager import WorkerManager
from iii_core.workers.state import Phase

from .workerbench import Bench, open_bench, run_on, spec_of


@pytest.fixture
def anyio_backend(no_threads: None) -> tuple[str, dict[str, Any]]:
    """Nothing here waits for anything outside, so time may jump."""
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0.005)}


async def slow_to_end(process: MemoryProcess) -> int:
    """Takes five seconds of its grace."""
    process.path("/state").write_text("mine")
    await process.trap(signal.SIGTERM).wait()
    await trio.sleep(5)
    return 0


def manager_of(bench: Bench) -> WorkerManager:
    return WorkerManager(bench.nursery, bench.services, project=bench.folder, state_dir=bench.folder)


def state_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("state"))


async def test_who_is_added_again_loses_nothing_by_the_removal_before(tmp_path: Path) -> None:
    async with open_bench(tmp_path, slow_to_end, run=False) as bench:
        manager = manager_of(bench)
        await manager.apply({"w": spec_of()})
        await bench.began(1)
        (tmp_path / "snapshots" / "w").mkdir(parents=True)
        manager.forget("w")
        await manager.apply({})
        assert not (tmp_path / "writable" / "w").exists(), "renamed, before anybody else can be added"
        assert not (tmp_path / "snapshots" / "w").exists()
        await manager.apply({"w": spec_of()})
        await bench.began(2)
        await manager.get("w")._until(lambda: manager.get("w").phase is Phase.STARTING)
        assert len(state_files(tmp_path / "writable")) == 2
        await manager.delete_removed()
        (left,) = state_files(tmp_path / "writable")
        assert left.is_relative_to(tmp_path / "writable" / "w")
        assert list((tmp_path / "snapshots").iterdir()) == []


async def test_one_that_is_back_before_its_removal_is_taken_up_begins_anew(tmp_path: Path) -> None:
    found: list[bool] = []

    async def program(process: MemoryProcess) -> int:
        found.append(process.path("/state").exists())
        return await slow_to_end(process)

    async with open_bench(tmp_path, program, run=False) as bench:
        manager = manager_of(bench)
        await manager.apply({"w": spec_of(), "other": spec_of(name="other")})
        await bench.began(2)
        other = manager.get("other")
        manager.forget("w")
        await manager.apply({"w": spec_of(), "other": spec_of(name="other")})
        await bench.began(3)
        await manager.apply({"w": spec_of(), "other": spec_of(name="other")})
        await trio.sleep(60)
        assert found == [False] * 3
        assert manager.get("other") is other


async def test_an_end_that_nobody_waits_for_is_orderly_all_the_same(tmp_path: Path) -> None:
    async with open_bench(tmp_path, slow_to_end, run=False) as bench:
        manager = manager_of(bench)
        await manager.apply({"w": spec_of()})
        await bench.began(1)
        worker = manager.get("w")
        manager.forget("w")
        with trio.move_on_after(1):  # while it is in its grace
            await manager.apply({})
        assert worker.phase is Phase.STOPPED
        assert "worker exited with exit 0" in (tmp_path / "logs" / "w" / LOG_FILE).read_text()
        assert not (tmp_path / "writable" / "w").exists()


async def test_the_end_of_the_engine_sets_aside_and_the_next_one_deletes(tmp_path: Path) -> None:
    async with open_bench(tmp_path, slow_to_end, run=False) as bench:
        manager = manager_of(bench)
        await manager.apply({"w": spec_of(), "kept": spec_of(name="kept")})
        await bench.began(2)
        await manager.get("w")._until(lambda: manager.get("w").phase is Phase.STARTING)
        manager.forget("w")
        await manager.stop_all()
        assert len(state_files(tmp_path / "writable")) == 2
        following = manager_of(bench)
        await following.find_removed()
        await following.sweep()
        assert [path.name for path in (tmp_path / "writable").iterdir()] == ["kept"]
        assert len(state_files(tmp_path / "writable" / "kept")) == 1


async def test_what_cannot_be_deleted_is_told_and_keeps_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / "writable" / f".removed-{name}-0" / "deep").mkdir(parents=True)
    real = Path.chmod

    def refuse(self: Path, mode: int, **options: Any) -> None:
        if ".removed-a" in str(self):
            raise OSError(5, "Input/output error", str(self))
        real(self, mode, **options)

    monkeypatch.setattr(Path, "chmod", refuse)
    async with open_bench(tmp_path, run_on, run=False) as bench:
        manager = manager_of(bench)
        await manager.find_removed()
        await manager.sweep()
        assert "cannot be deleted: Input/output error" in caplog.text
        assert [path.name for path in (tmp_path / "writable").iterdir()] == [".removed-a-0"]

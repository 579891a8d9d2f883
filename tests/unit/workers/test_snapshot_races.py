"""Who saves a worker and who deletes its snapshot at the same time: one after the other, or told that it is busy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import trio

from iii_core.errors import WorkerNotRunning
from iii_core.workers.saving import SaveOrders, SnapshotKeeper
from iii_core.workers.snapshots import SnapshotStore
from iii_core.workers.state import Phase

from .snapshotbench import Worker, being_saved, open_world, ready, states
from .workerbench import Bench


@pytest.fixture
def anyio_backend() -> str:
    """Files are saved in threads, so time must not jump."""
    return "trio"


class Saves:
    """How snapshots that were asked for ended."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.facts: list[dict[str, Any]] = []
        self.refused: list[WorkerNotRunning] = []

    async def save(self) -> None:
        try:
            self.facts.append(await self._bench.supervisor.snapshot())
        except WorkerNotRunning as error:
            self.refused.append(error)


async def test_asked_for_three_times_at_once(tmp_path: Path) -> None:
    worker = Worker()
    async with open_world(tmp_path, worker) as bench:
        await ready(bench)
        saves = Saves(bench)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(saves.save)
        assert (len(saves.facts), len(saves.refused)) == (1, 2)
        for error in saves.refused:
            assert (error.code, error.details["name"]) == ("W113", "w")
            assert "is being saved already" in error.message
            assert error.hint
        await ready(bench)
        assert len(states(tmp_path)) == 2
        await bench.supervisor.snapshot()
        await ready(bench)
        assert worker.began == [False]


async def test_asked_for_again_as_soon_as_somebody_has_left(tmp_path: Path) -> None:
    """The run may not have heard yet that nobody wants its order any more."""
    async with open_world(tmp_path, Worker()) as bench:
        for milliseconds in range(0, 60, 3):
            await ready(bench)
            saves = Saves(bench)
            with trio.move_on_after(milliseconds / 1000):
                await bench.supervisor.snapshot()
            await saves.save()
            assert len(saves.facts) + len(saves.refused) == 1
        await ready(bench)


@pytest.mark.parametrize("earlier", [False, True], ids=["first", "again"])
async def test_deleted_while_it_is_saved(tmp_path: Path, *, earlier: bool) -> None:
    async with open_world(tmp_path, Worker()) as bench:
        await ready(bench)
        if earlier:
            await bench.supervisor.snapshot()
            await ready(bench)
        bench.backend.save_delay = 1
        saves = Saves(bench)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(saves.save)
            await being_saved(bench)
            assert await bench.supervisor.snapshots.drop() is True
            assert states(tmp_path) == [], "what it was told is so"
        assert len(saves.facts) == 1
        await ready(bench)
        assert states(tmp_path) == []


async def test_deleted_at_any_moment_of_a_save(tmp_path: Path) -> None:
    """Neither of both fails, and what is deleted is gone."""
    async with open_world(tmp_path, Worker()) as bench:
        for milliseconds in range(0, 80, 4):
            await ready(bench)
            saves = Saves(bench)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(saves.save)
                await trio.sleep(milliseconds / 1000)
                await bench.supervisor.snapshots.drop()
                if saves.facts:
                    assert states(tmp_path) == []
            assert len(saves.facts) + len(saves.refused) == 1
            assert len(states(tmp_path)) in (0, 2)


async def test_saved_while_it_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deleting, go_on = trio.Event(), trio.Event()
    delete = shutil.rmtree

    def slowly(folder: Path) -> None:
        trio.from_thread.run_sync(deleting.set)
        trio.from_thread.run(go_on.wait)
        delete(folder)

    async with open_world(tmp_path, Worker()) as bench:
        await ready(bench)
        await bench.supervisor.snapshot()
        await ready(bench)
        saves = Saves(bench)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", slowly)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bench.supervisor.snapshots.drop)
                await deleting.wait()
                await saves.save()
                go_on.set()
        (error,) = saves.refused
        assert "its snapshot is being deleted" in error.message
        assert states(tmp_path) == []
        assert bench.supervisor.phase is Phase.RUNNING, "it was not disturbed"


async def test_saved_once_its_run_has_ended(tmp_path: Path) -> None:
    """It ended between the question whether it is ready and the order: nobody would carry that out."""
    orders = SaveOrders()
    orders.end("w")
    with trio.fail_after(5), pytest.raises(WorkerNotRunning, match="ended while it was saved"):
        await orders.save(tmp_path / "state")


async def test_swept_while_its_folder_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a worker that is removed while it is saved."""
    folder = tmp_path / "snapshots"
    (folder / "state-1").mkdir(parents=True)
    iterdir = Path.iterdir

    def gone(path: Path) -> object:
        if path == folder and folder.exists():
            folder.rename(tmp_path / "aside")
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", gone)
    await SnapshotKeeper("w", SnapshotStore(folder)).sweep()
    assert (tmp_path / "aside" / "state-1").is_dir()

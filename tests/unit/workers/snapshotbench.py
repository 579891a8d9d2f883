"""A worker that stays connected, for tests that save it: how often it began, was restored and connected."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from iii_core.testing.memory_backend import MemoryProcess

from .workerbench import SANDBOX, Bench, open_bench, spec_of

PORT = 49134


class Worker:
    """A program that stays connected, and how often it was begun, restored and connected."""

    def __init__(self) -> None:
        self.began: list[bool] = []
        self.connections = 0
        self.exit: int | None = None
        self.processes: list[MemoryProcess] = []
        self.comes_back = True

    async def __call__(self, process: MemoryProcess) -> int | None:
        self.began.append(process.restored)
        self.processes.append(process)
        note = process.path("/workspace/note")
        note.parent.mkdir(parents=True, exist_ok=True)
        while self.exit is None:
            with suppress(OSError):
                async with await process.connect(PORT) as stream:
                    self.connections += 1
                    with suppress(trio.BrokenResourceError):
                        while await stream.receive_some():
                            pass
            if not self.comes_back:
                await trio.sleep_forever()
            await trio.sleep(0.01)
        return self.exit


@asynccontextmanager
async def open_world(folder: Path, worker: Worker, **changes: object) -> AsyncGenerator[Bench]:
    """A bench whose engine sees a worker whenever a connection of it is open."""
    async with open_bench(folder, worker, spec=spec_of(**changes)) as bench:
        served = 0

        async def serve(stream: trio.abc.Stream, sandbox_id: str) -> None:
            nonlocal served
            served += 1
            bench.engine.see(True)
            try:
                with suppress(trio.BrokenResourceError):
                    await stream.receive_some()
            finally:
                served -= 1
                bench.engine.see(served > 0)

        bench.engine.serve_tunnel = serve  # type: ignore[method-assign]
        yield bench
        await stop(bench)


async def ready(bench: Bench) -> None:
    with trio.fail_after(30):
        await bench.supervisor.ready(30)


async def being_saved(bench: Bench) -> None:
    """Wait until the backend is about to save the worker's sandbox: for `MemoryBackend.save_delay` seconds from now."""
    with trio.fail_after(30):
        while SANDBOX not in bench.backend.saving:  # noqa: ASYNC110 - it tells nobody
            await trio.sleep(0.001)


def states(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "snapshots").glob("*")) if (folder / "snapshots").exists() else []


async def stop(bench: Bench) -> None:
    bench.supervisor.request_stop()
    with trio.fail_after(30):
        await bench.supervisor.stopped()

"""Changes of config.yaml are noticed however they are made, and other files' changes are not."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from iii_core.app.watch import DEBOUNCE, WRITING_TIMEOUT, FileWatch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """What a file tells is there as soon as it is written, so time may jump."""
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0.005)}


def overwrite(path: Path) -> None:
    path.write_text("new")


def replace(path: Path) -> None:
    other = path.with_name("temporary")
    other.write_text("new")
    other.replace(path)


def delete(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("change", [overwrite, replace, delete])
async def test_a_change_is_noticed(tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("old")
    with closing(FileWatch(path.parent, [path.name])) as watch, trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.changed)
            await trio.testing.wait_all_tasks_blocked()
            change(path)


async def test_other_files_and_mere_reading_are_not_changes(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("old")
    with closing(FileWatch(path.parent, [path.name])) as watch:
        (tmp_path / "config.yaml.swp").write_text("x")
        path.read_text()
        with trio.move_on_after(DEBOUNCE * 3) as scope:
            await watch.changed()
        assert scope.cancelled_caught


async def test_a_burst_is_one_change(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("old")
    seen = 0
    with closing(FileWatch(path.parent, [path.name])) as watch:

        async def count() -> None:
            nonlocal seen
            while True:
                await watch.changed()
                seen += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            for _ in range(5):
                overwrite(path)
                replace(path)
                await trio.sleep(DEBOUNCE / 10)
            await trio.sleep(DEBOUNCE * 3)
            nursery.cancel_scope.cancel()
    assert seen == 1


async def test_a_file_is_not_read_while_it_is_written(tmp_path: Path) -> None:
    """An editor that saves in place leaves it empty for a moment."""
    path = tmp_path / "config.yaml"
    path.write_text("old")
    with closing(FileWatch(path.parent, [path.name])) as watch:
        overwrite(path)
        async with trio.open_nursery() as nursery:
            with path.open("w") as file:
                nursery.start_soon(watch.changed)
                await trio.sleep(WRITING_TIMEOUT - DEBOUNCE)
                assert nursery.child_tasks
                file.write("new")
            nursery.cancel_scope.deadline = trio.current_time() + 2 * DEBOUNCE
        assert not nursery.cancel_scope.cancelled_caught


async def test_a_file_that_is_kept_open_is_read_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("old")
    with closing(FileWatch(path.parent, [path.name])) as watch:
        overwrite(path)
        with path.open("w"), trio.fail_after(2 * WRITING_TIMEOUT):
            await watch.changed()


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileWatch(tmp_path / "nowhere", ["config.yaml"])

"""Log files of managed workers: what is kept, and for how long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iii_core.workers.logs import STDERR, STDOUT, RunLog, tail

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir()) if path.stat().st_size}


def test_the_previous_run_is_kept_and_streams_stay_apart(tmp_path: Path) -> None:
    for run in range(1, 6):
        log = RunLog(tmp_path)
        log.write(STDOUT, b"out %d\n" % run)
        log.note(f"run {run}")
        log.close()
        log.close()
    assert contents(tmp_path) == {
        "stdout.log": "out 5\n",
        "stdout.log.1": "out 4\n",
        "stdout.log.2": "out 3\n",
        "stdout.log.3": "out 2\n",
        "stderr.log": "[iii] run 5\n",
        "stderr.log.1": "[iii] run 4\n",
        "stderr.log.2": "[iii] run 3\n",
        "stderr.log.3": "[iii] run 2\n",
    }


def test_a_silent_run_does_not_push_out_the_last_words_of_a_crash(tmp_path: Path) -> None:
    first = RunLog(tmp_path)
    first.write(STDERR, b"boom\n")
    first.close()
    for _ in range(4):
        RunLog(tmp_path).close()
    assert contents(tmp_path) == {"stderr.log.1": "boom\n"}


def test_a_file_at_its_limit_is_rotated_in_mid_run(tmp_path: Path) -> None:
    log = RunLog(tmp_path, max_bytes=10)
    for word in (b"aaaaaa", b"bbbbbb", b"c" * 50):
        log.write(STDOUT, word)
    log.close()
    assert contents(tmp_path) == {"stdout.log": "c" * 50, "stdout.log.1": "bbbbbb", "stdout.log.2": "aaaaaa"}


def test_a_full_disk_costs_lines_not_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(tmp_path)

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("iii_core.workers.logs.os.write", full)
        log.write(STDOUT, b"lost")
    log.write(STDOUT, b"kept")
    log.close()
    assert contents(tmp_path) == {"stdout.log": "kept"}


def test_a_link_in_the_place_of_a_log_is_moved_aside_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "stdout.log").symlink_to(victim)
    log = RunLog(folder)
    log.write(STDOUT, b"x")
    log.close()
    assert victim.read_text() == "mine"


def test_tail(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert tail(path, 5) == []
    path.write_bytes(b"one\ntwo\xff\nthree\nfour")
    assert tail(path, 2) == ["three", "four"]
    assert tail(path, 9) == ["one", "two\ufffd", "three", "four"]
    assert tail(path, 9, max_bytes=8) == ["four"]

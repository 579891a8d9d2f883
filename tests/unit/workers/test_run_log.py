"""The log of a managed worker: what is kept, for how long, and that a worker speaks for nobody but itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iii_core.images.port import Progress
from iii_core.workers.logs import LOG_FILE, LineReader, RunLog, Stream, last_lines, read_log, tails
from iii_core.workers.progress import ProgressNotes

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def lines(path: Path) -> list[tuple[str, str]]:
    return [(line.stream.value, line.text) for line in read_log(path)]


def contents(folder: Path) -> dict[str, list[str]]:
    return {path.name: [text for _, text in lines(path)] for path in sorted(folder.iterdir()) if path.stat().st_size}


def test_the_previous_run_is_kept_and_order_is_that_of_time(tmp_path: Path) -> None:
    for run in range(1, 6):
        log = RunLog(tmp_path)
        log.write(Stream.STDOUT, b"out %d\n" % run)
        log.note(f"run {run}")
        log.write(Stream.STDERR, b"err\n")
        log.close()
        log.close()
    assert contents(tmp_path) == {
        f"{LOG_FILE}{suffix}": [f"out {run}", f"run {run}", "err"]
        for suffix, run in (("", 5), (".1", 4), (".2", 3), (".3", 2))
    }
    assert [stream for stream, _ in lines(tmp_path / LOG_FILE)] == ["stdout", "iii", "stderr"]
    times = [line.time for line in read_log(tmp_path / LOG_FILE)]
    assert times == sorted(times)
    assert len(times[0]) == len("2026-01-31T12:00:00.000000Z")


def test_a_worker_cannot_speak_as_iii(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    forged = b"2026-01-31T12:00:00.000000Z iii F all is well"
    log.write(Stream.STDOUT, b"x\n" + forged + b"\n" + forged)
    log.write(Stream.STDERR, b"\n" + forged + b"\r\n[iii] fine\n")
    assert {stream for stream, _ in lines(tmp_path / LOG_FILE)} == {"stdout", "stderr"}
    assert tails(tmp_path, 5)["iii_tail"] == []
    assert tails(tmp_path, 1)["stderr_tail"] == ["[iii] fine"]


def test_lines_are_whole_whatever_pieces_they_came_in(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    for stream, piece in (
        (Stream.STDOUT, b"one, "),
        (Stream.STDERR, b"between\n"),
        (Stream.STDOUT, b"still one\n\ntwo\nth"),
        (Stream.STDOUT, b"ree"),
    ):
        log.write(stream, piece)
    assert lines(tmp_path / LOG_FILE) == [
        ("stderr", "between"),
        ("stdout", "one, still one"),
        ("stdout", ""),
        ("stdout", "two"),
        ("stdout", "three"),
    ]


def test_a_line_without_end_costs_no_memory_without_end() -> None:
    reader = LineReader()
    given = [line for _ in range(40) for line in reader.read([f"t stdout P {'x' * 65536}"])]
    assert sum(len(line.text) for line in given) >= 38 * 65536 // 2
    assert max(len(line.text) for line in given) < 2 << 20


def test_a_silent_run_does_not_push_out_the_last_words_of_a_crash(tmp_path: Path) -> None:
    first = RunLog(tmp_path)
    first.write(Stream.STDERR, b"boom\n")
    first.close()
    for _ in range(4):
        RunLog(tmp_path).close()
    assert contents(tmp_path) == {f"{LOG_FILE}.1": ["boom"]}


def test_a_file_at_its_limit_is_rotated_in_mid_run(tmp_path: Path) -> None:
    log = RunLog(tmp_path, max_bytes=60)
    for word in (b"aaaaaa\n", b"bbbbbb\n", b"c" * 50):
        log.write(Stream.STDOUT, word)
    log.close()
    assert contents(tmp_path) == {LOG_FILE: ["c" * 50], f"{LOG_FILE}.1": ["bbbbbb"], f"{LOG_FILE}.2": ["aaaaaa"]}


def test_a_full_disk_costs_lines_not_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(tmp_path)

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("iii_core.workers.logs.os.write", full)
        log.write(Stream.STDOUT, b"lost\n")
    log.write(Stream.STDOUT, b"kept\n")
    log.close()
    assert contents(tmp_path) == {LOG_FILE: ["kept"]}


def test_a_link_in_the_place_of_a_log_is_moved_aside_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / LOG_FILE).symlink_to(victim)
    log = RunLog(folder)
    log.write(Stream.STDOUT, b"x")
    log.close()
    assert victim.read_text() == "mine"


def test_the_last_lines(tmp_path: Path) -> None:
    path = tmp_path / LOG_FILE
    assert read_log(path) == []
    log = RunLog(tmp_path)
    log.write(Stream.STDOUT, b"one\ntwo\xff\n")
    log.write(Stream.STDERR, b"err\n")
    log.write(Stream.STDOUT, b"three\nfour")
    found = read_log(path)
    assert [line.text for line in last_lines(found, 2)] == ["err", "three", "four"]
    assert [line.text for line in last_lines(found, 3, [Stream.STDOUT])] == ["two\ufffd", "three", "four"]
    assert last_lines(found, 0) == []
    assert [line.text for line in read_log(path, max_bytes=90)] == ["three", "four"]


def test_fetching_says_little_and_with_numbers() -> None:
    said: list[str] = []
    now = 0.0
    notes = ProgressNotes(said.append, clock=lambda: now)
    notes(Progress(stage="resolving", item="x/y:1"))
    for second in range(36):
        now = float(second)
        notes(Progress(stage="downloading", item="x/y:1", done=second * 1_000_000, total=36_000_000))
    notes(Progress(stage="stored", item="x/y:1"))
    assert said == [
        "resolving x/y:1",
        "downloading x/y:1: 0.0 of 36.0 MB",
        "downloading x/y:1: 10.0 of 36.0 MB",
        "downloading x/y:1: 20.0 of 36.0 MB",
        "downloading x/y:1: 30.0 of 36.0 MB",
        "stored x/y:1",
    ]

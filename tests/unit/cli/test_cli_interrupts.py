"""Ctrl-C before the program is there, and after it is done."""

from __future__ import annotations

import signal
from typing import Any

import pytest

AT_THE_END = """
import os, signal, sys

class Last:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGINT):
        kill(pid, number)

sys.last = Last()
"""
IMPORTED = """
import os, signal
os.kill(os.getpid(), signal.SIGINT)
raise ImportError("still here")
"""


class TestInterruptsWhileTheProgramIsImported:
    @pytest.fixture
    def importing(self, iii: Any) -> Any:
        (iii.root / "site").mkdir()
        (iii.root / "site" / "typer.py").write_text(IMPORTED)
        iii.env["PYTHONPATH"] = str(iii.root / "site")
        return iii

    def test_end_it_quietly(self, importing: Any) -> None:
        done = importing("worker", "list")
        assert (done.code, done.out, done.err) == (130, "", "")

    def test_are_ignored_where_whoever_started_it_ignores_them(self, importing: Any) -> None:
        ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            done = importing("worker", "list")
        finally:
            signal.signal(signal.SIGINT, ignored)
        assert done.code == 1
        assert "ImportError: still here" in done.err

    def test_change_no_exit_code_while_the_interpreter_ends(self, iii: Any) -> None:
        site = iii.root / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(AT_THE_END)
        done = iii("--version", env={"PYTHONPATH": str(site)})
        assert (done.code, done.err) == (0, "")

"""``iii worker remove`` that is killed in the middle of it, with a real worker."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from iiitools.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from conftest import IIIProject
    from iiitools.registry import Registry

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]
NAME = "math-worker"


def test_a_killed_remove_is_finished_and_an_add_right_after_works(working: IIIProject, registry: Registry) -> None:
    working.ok("worker", "exec", NAME, "--", "touch", "/marker")
    removing = working.popen("worker", "remove", "-y", NAME)
    deadline = time.monotonic() + PATIENCE
    while NAME in working.config.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    removing.kill()
    removing.communicate(timeout=PATIENCE)
    working.ok("worker", "add", f"{registry.address}/math-worker:1.0")
    facts = working.wait_running()
    assert facts["restarts"] == 0, "the one before was gone when it came"
    assert working.run("worker", "exec", NAME, "--", "test", "-e", "/marker").returncode == 1
    layers = working.folder / ".iii" / "writable"
    wait_until(lambda: [path.name for path in layers.iterdir()] == [NAME], told=lambda: list(layers.iterdir()))

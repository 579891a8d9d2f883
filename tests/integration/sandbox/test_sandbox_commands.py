"""``iii sandbox backends`` and ``iii sandbox check``: the real program, backends that work and backends that lie."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from iiitools.processes import still_running
from iiitools.waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(180)]
III = Path(sys.executable).with_name("iii")
LEAKY = """
from contextlib import asynccontextmanager
from dataclasses import replace

from iii_core import hookimpl
from iii_core.records import ProbeResult
from iii_sandbox_bubblewrap import plugin

(RECORD,) = plugin.iii_sandbox_backends()

@asynccontextmanager
async def open_leaky(settings, context):
    async with RECORD.open(settings, context) as driver:
        create = driver.create

        async def leaking_create(spec):
            await create(spec)
            spec.writable_dir.with_name("leaked").touch()

        driver.create = leaking_create
        yield driver

async def explode(settings, context):
    raise RuntimeError("boom")

async def by_name_only(settings, context):
    return ProbeResult(ok=True, automatic=False, reason="it is\\x1b[2J slow", hint="be patient")

@hookimpl
def iii_sandbox_backends():
    yield replace(RECORD, name="leaky", strength=90, open=open_leaky, probe=by_name_only)
    yield replace(RECORD, name="exploding", strength=80, probe=explode)
"""


class Here:
    """Runs ``iii`` in an empty folder with homes of its own."""

    def __init__(self, root: Path, runtime: Path) -> None:
        self.root = root
        self.runtime = runtime
        self.disk = root / "disk"
        self.disk.mkdir()
        self.env = {
            "PATH": os.environ["PATH"], "HOME": str(root), "III_HOME": str(root / "home"), "NO_COLOR": "1",
            "XDG_RUNTIME_DIR": str(runtime), "TMPDIR": str(self.disk), "LANG": "C.UTF-8",
        }  # fmt: skip

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [III, *arguments], cwd=self.root, env=self.env, capture_output=True, text=True, timeout=100, check=False
        )

    def leftovers(self) -> list[Path]:
        return [*self.disk.iterdir(), *self.runtime.glob("iii/*/*")]


@pytest.fixture
def iii(tmp_path: Path) -> Iterator[Here]:
    with tempfile.TemporaryDirectory(prefix="iii-test-") as runtime:
        yield Here(tmp_path, Path(runtime))


@pytest.fixture
def leaky(iii: Here) -> Here:
    info = iii.root / "site" / "leaky-1.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: leaky\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text("[iii]\nleaky = leaky_plugin\n")
    (info.parent / "leaky_plugin.py").write_text(LEAKY)
    iii.env |= {"PYTHONPATH": str(info.parent), "III_DISABLE_PLUGINS": "libvirt,cloud-hypervisor"}
    return iii


def rows(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(done.stdout)["backends"]}


def test_backends_are_tried_out(leaky: Here) -> None:
    done = leaky("sandbox", "backends", "--json")
    assert done.returncode == 0
    found = rows(done)
    assert list(found) == ["leaky", "exploding", "bubblewrap"], "the strongest first"
    assert found["bubblewrap"]["works"] is found["bubblewrap"]["chosen"] is True
    assert found["bubblewrap"]["distribution"] == "iii-sandbox-bubblewrap"
    assert "memory-limit" in found["bubblewrap"]["capabilities"]
    facts = ("works", "automatic", "chosen", "hint", "distribution", "version")
    assert [found["leaky"][fact] for fact in facts] == [True, False, False, "be patient", "leaky", "1.5"]
    assert found["exploding"]["works"] is False
    assert found["exploding"]["reason"]
    assert leaky.leftovers() == []


def test_backends_for_people(leaky: Here) -> None:
    done = leaky("sandbox", "backends")
    assert done.stdout == ""
    lines = [" ".join(line.split()) for line in done.stderr.splitlines()]
    assert "leaky namespaces yes no leaky 1.5" in lines
    assert "why not automatic: it is\\x1b[2J slow" in lines
    assert "hint: be patient" in lines
    assert any(line.startswith("bubblewrap namespaces yes taken iii-sandbox-bubblewrap ") for line in lines)
    assert any(line.startswith("exploding namespaces no no ") for line in lines)


def test_a_missing_program_is_the_reason(iii: Here) -> None:
    empty = iii.root / "empty"
    empty.mkdir()
    iii.env |= {"PATH": str(empty), "III_DISABLE_PLUGINS": "libvirt,cloud-hypervisor"}
    found = rows(iii("sandbox", "backends", "--json"))["bubblewrap"]
    assert (found["works"], found["chosen"]) == (False, False)
    assert "bwrap is not installed" in found["reason"]
    assert "apt install bubblewrap" in found["hint"]


def test_a_good_backend_passes(iii: Here) -> None:
    done = iii("sandbox", "check", "bubblewrap", "-k", "destroy_drops")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    first, last = done.stderr.splitlines()
    assert first.startswith("  ✓ destroy_drops_the_layer (")
    assert last == "  1 of 1 checks passed for bubblewrap."
    assert iii.leftovers() == []


def test_the_programs_of_the_kit_work_inside(iii: Here) -> None:
    """Limits, users and mounts use everything that the one program of the image can do."""
    for name in ("limits", "users", "mounts"):
        done = iii("sandbox", "check", "bubblewrap", "-k", name, "--json")
        assert done.returncode == 0, done.stdout
        (found,) = json.loads(done.stdout)["checks"]
        assert found["ok"]
        assert found["summary"].endswith(".")


def test_a_backend_that_leaks_is_caught(leaky: Here) -> None:
    done = leaky("sandbox", "check", "leaky", "-k", "lifecycle")
    assert done.returncode == 1
    assert "✗ lifecycle (" in done.stderr
    assert "files: new ['" in done.stderr
    assert "/leaked'" in done.stderr
    assert "0 of 1 checks passed for leaky." in done.stderr
    done = leaky("sandbox", "check", "leaky", "-k", "lifecycle", "--json")
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert answer["ok"] is False
    assert "leaked" in answer["checks"][0]["error"]
    assert leaky.leftovers() == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["leaky", "more"], 2, "unexpected extra argument"),
        (["nope"], 1, "[W212] there is no sandbox backend 'nope'"),
        (["exploding"], 1, "error: ["),
        (["bubblewrap", "-k", "zzz"], 2, "no check has 'zzz' in its name"),
        ([], 2, "Missing argument"),
    ],
)
def test_bad_input(leaky: Here, arguments: list[str], code: int, said: str) -> None:
    done = leaky("sandbox", "check", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert leaky.leftovers() == []


def test_assertions_that_are_left_out_prove_nothing(iii: Here) -> None:
    iii.env["PYTHONOPTIMIZE"] = "1"
    done = iii("sandbox", "check", "bubblewrap")
    assert done.returncode == 2
    assert "unset PYTHONOPTIMIZE" in done.stderr


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_and_leaves_nothing(iii: Here, how: signal.Signals, code: int) -> None:
    with subprocess.Popen(
        [III, "sandbox", "check", "bubblewrap", "-k", "many_at_once"],
        cwd=iii.root, env=iii.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        wait_until(lambda: list(iii.disk.glob("*/many_at_once/*.layer")))
        below = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(how)
        assert process.wait(PATIENCE) == code
    assert not still_running(below, within=PATIENCE)
    assert iii.leftovers() == []

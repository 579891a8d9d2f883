"""``iii worker status``."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from iii_core.cli.names import complete_worker
from iii_core.cli.output import data_json, is_terminal, printable, styled
from iii_core.cli.quick import QuickCommand
from iii_core.cli.state import state_of
from iii_core.cli.worker.rows import find_row
from iii_core.cli.worker.tail import has_output
from iii_core.errors import EngineNotRunning
from iii_core.project.locate import read_record
from iii_core.project.names import check_name
from iii_core.workers.logs import tails

if TYPE_CHECKING:
    from iii_core.project.locate import Project

SETTLED: Final = ("running", "stopped", "failed", "engine-down")
REDRAW: Final = 0.5
TAIL_LINES: Final = 5
_HEADLINES: Final = {
    "running": ("✓", "green", "ready"),
    "stopped": ("●", "dim", "stopped"),
    "failed": ("✗", "red", "failed"),
    "engine-down": ("⚠", "yellow", "not running: start the engine with `iii`"),
    "preparing": ("⟳", "yellow", "preparing its sandbox"),
    "booting": ("⟳", "yellow", "booting its sandbox"),
    "starting": ("⟳", "yellow", "starting"),
    "saving": ("⟳", "yellow", "standing still to be saved"),
    "stopping": ("⟳", "yellow", "stopping"),
    "restarting": ("⟳", "yellow", "waiting to be restarted"),
}

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command("status", cls=QuickCommand)
def status(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the worker in config.yaml.", autocompletion=complete_worker)
    ],
    no_watch: Annotated[bool, typer.Option("--no-watch", help="Show it once, even if it is changing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout, once.")] = False,
) -> None:
    """Show a worker's configuration, sandbox, process and latest output.

    On a terminal the display follows a worker that is starting, until it is ready or has failed. The exit code is 1 if
    it has failed, or if the engine is not running.
    """
    project = state_of(context).project
    facts = worker_facts(project, check_name(name))
    if as_json:
        data_json(facts)
    elif no_watch or not is_terminal(sys.stderr):
        sys.stderr.write(render(facts) + "\n")
    else:
        facts = _watch(project, name, facts)
    if facts["status"] in ("failed", "engine-down"):
        raise typer.Exit(1)


def worker_facts(project: Project, name: str) -> dict[str, Any]:
    """What ``worker.status`` says; without an engine what the files say, with ``status`` ``engine-down``.

    Raises `WorkerNotInstalled`.
    """
    if read_record(project) is not None:
        from iii_core.control.client import request

        try:
            facts: dict[str, Any] = request(project, "worker.status", {"name": name})
            return facts
        except EngineNotRunning:
            pass  # it ended this very moment
    from iii_core.workers.snapshots import SNAPSHOTS_FOLDER, SnapshotStore

    row = find_row(project, name)
    folder = project.logs_dir(name)
    return {
        **row,
        "status": "engine-down",
        "engine": None,
        "snapshot": SnapshotStore(project.state_dir / SNAPSHOTS_FOLDER / name).facts(),
        "config_path": str(project.config_path),
        "logs": str(folder),
        **tails(folder, TAIL_LINES),
    }


def render(facts: dict[str, Any]) -> str:
    """The block that people read (spec worker-cli §1.10), without a line end at its end."""
    mark, colour, words = _HEADLINES.get(facts["status"], ("●", "dim", str(facts["status"])))
    pid = f" (pid {facts['pid']})" if facts.get("pid") else ""
    lines = ["", f"  {styled(mark, colour)} {printable(facts['name'])} {words}{pid}", ""]
    lines += [f"{label + ':':>12}  {printable(value)}" for label, value in _details(facts) if value]
    for stream, title in (("iii", "iii said"), ("stderr", "last lines of stderr"), ("stdout", "last lines of stdout")):
        tail: list[str] = facts.get(f"{stream}_tail") or []
        if shown := [line for line in tail if line.strip()][-TAIL_LINES:]:
            lines += ["", f"  {title}:", *(f"    {printable(line)}" for line in shown)]
    return "\n".join([*lines, ""])


def _details(facts: dict[str, Any]) -> list[tuple[str, str | None]]:
    engine: dict[str, Any] = facts.get("engine") or {}
    error: dict[str, Any] = facts.get("error") or {}
    addresses: list[dict[str, Any]] = engine.get("listeners") or []
    listeners = ", ".join(f"{'wss' if at.get('secure') else 'ws'}://{at['host']}:{at['port']}" for at in addresses)
    at_line = f":{facts['line']}" if facts.get("line") else ""
    down, inside = facts["status"] == "engine-down", facts.get("type") == "engine"
    return [
        ("engine", f"running {listeners}".strip() if engine else "stopped (run `iii` in another terminal)"),
        ("config", f"present type={facts.get('type')} ({facts.get('config_path')}{at_line})"),
        ("pinned", _pinned(facts)),
        ("sandbox", _sandbox(facts)),
        ("process", f"alive pid={facts['pid']}" if facts.get("pid") else None if inside else "not started"),
        ("snapshot", _snapshot(facts.get("snapshot"), woken=bool(facts.get("warm") and facts.get("pid")))),
        ("restarts", str(facts["restarts"]) if facts.get("restarts") else None),
        ("last exit", facts.get("last_exit")),
        ("worker", None if down else _registered(facts)),
        ("limits", f"not enforced here: {', '.join(facts['unenforced'])}" if facts.get("unenforced") else None),
        ("note", "; ".join(facts.get("notes") or []) or facts.get("note")),
        ("error", f"[{error['code']}] {error['message']}" if error else None),
        ("hint", error.get("hint")),
        ("logs", _logs(facts)),
    ]


def _sandbox(facts: dict[str, Any]) -> str | None:
    if facts.get("type") == "engine":
        return "n/a (lives inside the engine)"
    image: dict[str, Any] = facts.get("image") or {}
    if not facts.get("backend") and not image:
        return None
    shown = f"{facts.get('backend') or 'none yet'}" + (f" ({facts['isolation']})" if facts.get("isolation") else "")
    return f"{shown} image={image['reference']}" if image else shown


def _snapshot(snapshot: dict[str, Any] | None, *, woken: bool) -> str | None:
    if snapshot is None:
        return None
    from iii_core.cli.progress import megabytes

    if snapshot.get("problem"):
        return str(snapshot["problem"])
    taken, size = float(snapshot["taken"]), int(snapshot["size"])
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(taken))
    text = f"of {when} ({_age(time.time() - taken)} ago), {megabytes(size)}"
    return f"{text}; it was started from it" if woken else text


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def _pinned(facts: dict[str, Any]) -> str | None:
    if facts.get("type") != "oci" or "pin" not in facts:
        return None
    pin: str | None = facts["pin"]
    how = f"`iii worker reinstall {facts['name']}` pins what comes from a registry"
    return pin.rpartition("@")[2] if pin else f"no ({how})"


def _registered(facts: dict[str, Any]) -> str:
    return "registered (connected to engine)" if facts["status"] == "running" else "not registered"


def _logs(facts: dict[str, Any]) -> str:
    available = has_output(facts.get("logs") or "")
    return f"available (tail with `iii worker logs {facts['name']} -f`)" if available else "none yet"


def _watch(project: Project, name: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Redraw until the state has settled; the facts last shown."""
    begun, height = time.monotonic(), 0
    while True:
        settled = facts["status"] in SETTLED
        elapsed = "" if settled else f"\n  ({time.monotonic() - begun:.0f}s)"
        width = max(20, shutil.get_terminal_size().columns)
        lines = [_clip(line, width) for line in (render(facts) + elapsed).split("\n")]
        sys.stderr.write((f"\x1b[{height}F\x1b[J" if height else "") + "\n".join(lines) + "\n")
        sys.stderr.flush()
        height = len(lines)
        if settled:
            return facts
        time.sleep(REDRAW)
        facts = worker_facts(project, name)


def _clip(line: str, width: int) -> str:
    return line if "\x1b" in line or len(line) < width else line[: width - 1]

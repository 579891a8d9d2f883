"""Start-up of the command line against a trivial Typer program that does the same things.

The reference is the fastest Typer there is: plain help without rich, no completion, one module, the YAML read by
libyaml without any check. Both are started by the same interpreter, in turns.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from iiitools.bench import Row, median_times, pinned

AIM = 1.5
REFERENCE = '''
import typer
app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
worker = typer.Typer(rich_markup_mode=None, add_completion=False)
app.add_typer(worker, name="worker", help="Workers")

@app.callback()
def main(debug: bool = False) -> None:
    """A trivial program."""

@app.command()
def trigger(function: str) -> None:
    """Call a function."""

@worker.callback()
def workers() -> None:
    """Workers."""

@worker.command("list")
def list_workers(json: bool = False) -> None:
    """List workers."""
    import sys, yaml
    with open("config.yaml") as file:
        for entry in yaml.load(file, yaml.CSafeLoader)["workers"]:
            print(f"{entry['name']:25} {entry['image']:25} stopped", file=sys.stderr)

app()
'''
CONFIG = "workers:\n" + "".join(
    f"  - name: worker-{number}\n    image: ghcr.io/acme/worker-{number}:1.0.0\n    config:\n      LOG_LEVEL: debug\n"
    for number in range(10)
)


def measure() -> list[Row]:
    """``iii --help`` and ``iii worker list``."""
    with tempfile.TemporaryDirectory() as folder, pinned(0) as conditions:
        (Path(folder) / "reference.py").write_text(REFERENCE)
        (Path(folder) / "config.yaml").write_text(CONFIG)
        script = str(Path(sys.executable).with_name("iii"))
        return [
            _compare(folder, script, ["--help"], conditions),
            _compare(folder, script, ["worker", "list"], f"{conditions}, 10 workers, no engine"),
        ]


def _compare(folder: str, script: str, arguments: list[str], conditions: str) -> Row:
    def run(program: str) -> None:
        done = subprocess.run([sys.executable, program, *arguments], cwd=folder, capture_output=True, check=True)
        assert done.stdout or done.stderr

    ours, reference = median_times(lambda: run(script), lambda: run("reference.py"))
    return Row(
        name=f"iii {' '.join(arguments)}",
        unit="ms",
        ours=ours * 1000,
        reference=reference * 1000,
        reference_name=f"trivial typer {version('typer')} program",
        aim=AIM,
        better="lower",
        conditions=conditions,
    )

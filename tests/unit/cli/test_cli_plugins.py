"""Plugins as the command line meets them: their commands, the cached list of these, and what is wrong with them."""

from __future__ import annotations

import json
import os
import re
import shutil
from typing import Any

import pytest

from iii_core import __version__

HELLO = """
from iii_core import hookimpl
from iii_core.records import Command

def load():
    import typer
    app = typer.Typer()

    @app.command()
    def hello(name: str = "you", loud: bool = False) -> None:
        print(f"hello {name}".upper() if loud else f"hello {name}")

    return app

@hookimpl
def iii_commands():
    yield Command(name="hello", help="Say hello", load=load)
"""
SECOND = 'yield Command(name="bye", help="Say bye", load=load)\n    yield'


@pytest.fixture
def site(iii: Any) -> Any:
    site = iii.root / "site"

    def install(name: str, source: str) -> None:
        info = site / f"{name}-1.5.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[iii]\n{name} = {name}_plugin\n")
        (site / f"{name}_plugin.py").write_text(source)

    iii.env["PYTHONPATH"] = str(site)
    return install


def test_commands_of_plugins_are_commands(iii: Any, site: Any) -> None:
    site("greeter", HELLO)
    assert "hello    Say hello" in iii("--help").out
    done = iii("hello", "--name", "world", "--loud")
    assert (done.code, done.out) == (0, "HELLO WORLD\n")
    assert "--loud" in iii("hello", "--help").out


def test_the_listing_follows_what_is_installed(iii: Any, site: Any) -> None:
    assert "\n  hello" not in iii("--help").out
    site("greeter", HELLO)
    assert "Say hello" in iii("--help").out
    module = iii.root / "site/greeter_plugin.py"
    module.write_text(HELLO.replace("Say hello", "Greet people"))
    os.utime(module, ns=(1, 1))
    assert "Greet people" in iii("--help").out
    assert "\n  hello" not in iii("--help", env={"III_DISABLE_PLUGINS": "greeter"}).out
    cache = iii.root / "home/.iii/cache/commands.json"
    assert "hello" not in json.loads(cache.read_text())["commands"]
    for nonsense in ("", "[]", '{"depends": 1}', "[" * 100_000):
        cache.write_text(nonsense)
        assert "Greet people" in iii("--help").out
    shutil.rmtree(iii.root / "site/greeter-1.5.dist-info")
    assert iii("hello").code == 2
    assert "\n  hello" not in iii("--help").out


def test_a_stale_listing_runs_nothing(iii: Any, site: Any) -> None:
    site("greeter", HELLO)
    iii("--help")  # importing the plugin compiles it, which changes its folder
    iii("--help")
    cache = iii.root / "home/.iii/cache/commands.json"
    known = json.loads(cache.read_text())
    cache.write_text(json.dumps({**known, "commands": {"ghost": "Boo"}}))
    done = iii("ghost")
    assert done.code == 2
    assert "no plugin provides the command 'ghost' any more" in done.err
    assert iii("hello").out == "hello you\n"


def test_a_listing_that_cannot_be_kept(iii: Any, site: Any) -> None:
    site("greeter", HELLO)
    (iii.root / "home/.iii").write_text("in the way")
    assert "Say hello" in iii("--help").out


def test_two_plugins_with_one_command(iii: Any, site: Any) -> None:
    site("greeter", HELLO)
    site("welcomer", HELLO)
    shown = iii("--help")
    assert shown.code == 0
    assert "two plugins declare the Command 'hello'" in shown.err
    done = iii("hello")
    assert done.code == 1
    assert "[W211]" in done.err
    assert "greeter" in done.err
    assert "welcomer" in done.err
    rows = {row["name"]: row for row in json.loads(iii("plugins", "list", "--json").out)["plugins"]}
    assert "also declared by 'welcomer' of welcomer 1.5" in rows["greeter"]["warnings"][0]
    assert "also declared by 'greeter' of greeter 1.5" in rows["welcomer"]["warnings"][0]


def test_a_collision_harms_only_its_own_name(iii: Any, site: Any) -> None:
    site("greeter", HELLO)
    site("welcomer", HELLO.replace("yield", SECOND))
    assert iii("bye").out == "hello you\n"
    assert "Say bye" in iii("--help").out


@pytest.mark.parametrize("name", ["worker", "t"])
def test_a_command_that_the_core_has_is_hidden_and_said_to_be(iii: Any, site: Any, name: str) -> None:
    site("greeter", HELLO.replace('"hello"', f'"{name}"'))
    warning = f"its command {name!r} is hidden by the command of that name of iii-core {__version__}"
    for _ in range(2):  # found, then out of the cache
        shown = iii("--help")
        assert shown.err.splitlines()[0] == f"warning: plugin 'greeter' of greeter 1.5: {warning}"
        assert "Say hello" not in shown.out
    listed = iii("plugins", "list")
    assert re.search(r"greeter +greeter +1\.5 +warning +Command", listed.err)
    assert f"warning: greeter: {warning}" in listed.err
    assert iii("worker", "list").err == "  No workers. Use `iii worker add` to get started.\n"


def test_a_plugin_adds_to_a_group_of_the_core(iii: Any, site: Any) -> None:
    site("greeter", HELLO.replace('"hello"', '"sandbox.hello"'))
    for _ in range(2):  # found, then out of the cache
        shown = iii("sandbox", "--help")
        assert shown.err == ""
        assert "  backends " in shown.out
        assert "  hello " in shown.out
        assert "Say hello" not in iii("--help").out
    assert iii("sandbox", "hello", "--name", "world").out == "hello world\n"
    assert iii("hello").code == iii("sandbox.hello").code == iii("sandbox", "sandbox.hello").code == 2
    assert "Did you mean 'iii sandbox hello'?" in iii("sandbox", "helo").err
    assert iii("--no-plugins", "sandbox", "hello").code == 2


@pytest.mark.parametrize(
    ("name", "trouble"),
    [
        ("sandbox.backends", f"is hidden by the command of that name of iii-core {__version__}"),
        ("worker.hello", "is in no group that plugins can add to, which are sandbox"),
        ("nowhere.hello", "is in no group that plugins can add to, which are sandbox"),
        ("sandbox.more.hello", "is in no group that plugins can add to, which are sandbox"),
    ],
)
def test_a_command_of_a_group_that_cannot_be_reached(iii: Any, site: Any, name: str, trouble: str) -> None:
    site("greeter", HELLO.replace('"hello"', f'"{name}"'))
    shown = iii("--help")
    assert shown.err.splitlines()[0] == f"warning: plugin 'greeter' of greeter 1.5: its command {name!r} {trouble}"
    assert "Say hello" not in shown.out + iii("sandbox", "--help").out
    assert "No sandbox backends" in iii("sandbox", "backends", env={"III_DISABLE_PLUGINS": "*"}).err


def test_the_project_option_reaches_commands_of_plugins(iii: Any, site: Any) -> None:
    site(
        "greeter",
        HELLO.replace("import typer\n", "import typer\n    from iii_core.cli.state import state_of\n")
        .replace("def hello(name", "def hello(context: typer.Context, name")
        .replace('print(f"hello {name}"', 'print(state_of(context).project.config_path); print(f"hello {name}"'),
    )
    assert iii("-c", "other.yaml", "hello").out == f"{iii.root}/other.yaml\nhello you\n"


def test_no_plugins_means_none(iii: Any, site: Any) -> None:
    site("greeter", HELLO)
    assert iii("--no-plugins", "hello").code == 2
    assert "\n  hello" not in iii("--no-plugins", "--help").out
    assert iii("hello", env={"III_DISABLE_PLUGINS": "*"}).code == 2
    assert json.loads(iii("--no-plugins", "plugins", "list", "--json").out) == {"plugins": []}


def test_a_broken_plugin_harms_nobody(iii: Any, site: Any) -> None:
    site("broken", "raise RuntimeError('boom')")
    site("greeter", HELLO)
    assert iii("hello").out == "hello you\n"
    rows = {row["name"]: row for row in json.loads(iii("plugins", "list", "--json").out)["plugins"]}
    assert rows["broken"]["status"] == "failed"
    assert "RuntimeError: boom" in rows["broken"]["error"]
    assert rows["greeter"]["provides"] == [{"kind": "Command", "name": "hello"}]
    assert (rows["greeter"]["distribution"], rows["greeter"]["version"]) == ("greeter", "1.5")
    shown = iii("plugins", "list")
    assert shown.out == ""
    assert "Command hello" in shown.err
    assert "broken: RuntimeError: boom" in shown.err


def test_core_commands_never_import_plugins(iii: Any, site: Any) -> None:
    site("tracer", "open('imported', 'w').close()")
    iii("worker", "list")
    assert not (iii.root / "imported").exists()
    iii("--help")
    assert (iii.root / "imported").exists()


NO_TEXT = """
class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no text")

raise Mute
"""
ENDING = """
import sys
from iii_core import hookimpl

@hookimpl
def iii_commands():
    sys.exit(3)

@hookimpl
def iii_checks():
    sys.exit(3)
"""


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (NO_TEXT, "Mute (its text cannot be had: RuntimeError)"),
        (ENDING, "SystemExit: 3"),
        ("class Odd(BaseException): pass\nraise Odd('x')\n", "Odd: x"),
    ],
    ids=["no-text", "sys-exit", "base-exception"],
)
def test_a_broken_plugin_costs_no_more_than_itself(iii: Any, site: Any, source: str, error: str) -> None:
    site("greeter", HELLO)
    site("wreck", source)
    shown = iii("--help")
    assert (shown.code, "Say hello" in shown.out) == (0, True)
    assert iii("hello").out == "hello you\n"
    listed = iii("plugins", "list", "--json")
    assert listed.code == 0
    (row,) = (row for row in json.loads(listed.out)["plugins"] if row["name"] == "wreck")
    assert (row["status"], row["error"]) == ("failed", error)


@pytest.mark.parametrize(
    ("body", "how"),
    [("return None", "gave NoneType, not a typer.Typer"), ("import sys; sys.exit(3)", "raised SystemExit")],
)
def test_a_command_that_cannot_be_loaded_says_so(iii: Any, site: Any, body: str, how: str) -> None:
    site("greeter", HELLO.replace("    import typer\n", f"    {body}\n    import typer\n"))
    done = iii("hello")
    assert done.code == 1
    assert f"[W210] the plugin's command 'hello' cannot run: its load() {how}\nhint: see 'iii plugins list'" in done.err

"""``iii`` itself: help, version, options, errors, completion, plugins, and making a configuration."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from iii_core import __version__
from iii_core.cli import main as main_module
from iii_core.cli.output import printable
from iii_core.errors import ConfigError, ConsentRequired

SCRIPT = str(Path(sys.executable).with_name("iii"))
SECRET = "hunter2-canary"


def test_version(iii: Any) -> None:
    for option in ("--version", "-v"):
        done = iii(option)
        assert (done.code, done.out, done.err) == (0, f"{__version__}\n", "")


def test_help_names_every_command_and_goes_to_stdout(iii: Any) -> None:
    for option in ("--help", "-h"):
        done = iii(option)
        assert done.code == 0
        assert done.err == ""
        for command in ("worker", "trigger", "plugins"):
            assert f"\n  {command} " in done.out
    done = iii("worker", "--help")
    for command in ("add", "list", "start", "stop", "restart", "status", "logs", "exec", "remove", "reinstall"):
        assert f"\n  {command} " in done.out


@pytest.mark.parametrize(
    "command", ["add", "list", "start", "stop", "restart", "status", "logs", "exec", "remove", "reinstall"]
)
def test_every_worker_command_explains_itself(iii: Any, command: str) -> None:
    done = iii("worker", command, "--help")
    assert done.code == 0
    assert done.out.startswith(f"Usage: iii worker {command} ")


def test_a_group_without_a_command_shows_its_help_on_stderr(iii: Any) -> None:
    done = iii("worker")
    assert done.code == 2
    assert done.out == ""
    assert "Usage: iii worker" in done.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["wroker"], "No such command 'wroker'"),
        (["worker", "lst"], "No such command 'lst'"),
        (["--nope"], "No such option"),
        (["worker", "start"], "Missing argument"),
        (["worker", "list", "--frobnicate"], "No such option"),
        (["-c"], "requires an argument"),
    ],
)
def test_usage_errors(iii: Any, args: list[str], message: str) -> None:
    done = iii(*args)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert message in done.err
    assert "hint: see 'iii" in done.err


def test_config_errors_have_file_line_code_and_hint(iii: Any) -> None:
    iii.config.write_text("workers:\n  - name: x\n    imgae: a/b\n")
    done = iii("worker", "list")
    assert done.code == 1
    assert done.err == ("error: [W132] config.yaml:3: unknown key 'imgae' in a worker\nhint: did you mean 'image'?\n")


def test_another_config(iii: Any) -> None:
    other = iii.root / "sub"
    other.mkdir()
    (other / "my.yaml").write_text("workers:\n  - name: there\n    image: a/b\n")
    for args, env in ((["-c", "sub/my.yaml"], {}), ([], {"III_CONFIG_PATH": str(other / "my.yaml")})):
        done = iii(*args, "worker", "list", "--json", env=env)
        assert [row["name"] for row in json.loads(done.out)["workers"]] == ["there"]


def test_colours_only_on_a_terminal_and_only_if_wanted(project: Any, terminal: Any) -> None:
    assert "\x1b" not in project("worker", "status", "nobody").err
    shown = terminal("worker", "status", "nobody")
    assert shown.wait() == 1
    assert b"\x1b[31merror:\x1b[0m" in shown.seen
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        plain = terminal("worker", "status", "nobody", env=env)
        assert plain.wait() == 1
        assert b"error:" in plain.seen
        assert b"\x1b[" not in plain.seen


def test_closed_standard_streams(project: Any) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" worker list --json <&- >&- 2>&-', SCRIPT],
        cwd=project.root,
        env=project.env,
        check=False,
        timeout=20,
    )
    assert done.returncode == 0


def test_a_reader_that_leaves(project: Any) -> None:
    process = project.start("worker", "list", "--json", stdout=subprocess.PIPE)
    process.stdout.close()
    _, err = process.communicate(timeout=20)
    assert process.returncode == 141
    assert err == b""


class TestErrors:
    """Errors raised by a command, mapped in one place."""

    @pytest.fixture
    def failing(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        def install(error: BaseException) -> None:
            def fail(argv: list[str], state: Any) -> int:
                raise error

            monkeypatch.setattr(main_module, "_run", fail)

        return install

    @pytest.mark.parametrize(
        ("error", "code", "text"),
        [
            (ConsentRequired("needs a yes", hint="pass -y"), 1, "error: [W104] needs a yes\nhint: pass -y\n"),
            (ExceptionGroup("g", [ValueError("x"), ConfigError("broken")]), 1, "error: [W131] broken\n"),
            (ExceptionGroup("g", [ExceptionGroup("h", [ConfigError("deep")])]), 1, "error: [W131] deep\n"),
            (KeyboardInterrupt(), 130, ""),
            (BaseExceptionGroup("g", [KeyboardInterrupt()]), 130, ""),
            (typer.Exit(7), 7, ""),
            (BaseExceptionGroup("g", [typer.Exit(8)]), 8, ""),
            (PermissionError(13, "no", "/etc/x"), 1, "error: [W900] Permission denied: /etc/x\n"),
            (ConfigError("esc \x1b[2J\u202e"), 1, "error: [W131] esc \\x1b[2J\\u202e\n"),
        ],
    )
    def test_become_words_and_exit_codes(
        self, failing: Any, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, text: str
    ) -> None:
        failing(error)
        assert main_module.run([]) == code
        assert capsys.readouterr().err == text

    def test_the_unexpected_shows_no_traceback_and_no_content(
        self, failing: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        failing(ValueError(f"token={SECRET}"))
        assert main_module.run([]) == 1
        shown = capsys.readouterr().err
        assert shown == "error: [W900] internal error (ValueError)\nhint: run 'iii --debug …' to see where\n"

    def test_debug_shows_the_traceback(self, iii: Any) -> None:
        (iii.root / ".iii").mkdir()
        (iii.root / ".iii/engine.json").mkdir()  # nothing of ours makes a folder of it
        quiet = iii("--debug", "worker", "start", "x")
        assert "Traceback" in quiet.err
        assert "W201" in quiet.err
        assert "Traceback" not in iii("worker", "start", "x").err


def test_what_people_read_cannot_control_their_terminal() -> None:
    assert printable("a\tb\nc") == "a\tb\nc"
    assert printable("\x00\x07\x1b[31m\x7f\x9b") == "\\x00\\x07\\x1b[31m\\x7f\\x9b"
    assert printable("a\u202eb\u200b\u2066") == "a\\u202eb\\u200b\\u2066"
    assert printable("köttur 🐈") == "köttur 🐈"


class TestCompletion:
    def complete(self, iii: Any, line: str) -> list[str]:
        done = iii(
            env={"_III_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
        )
        return done.out.split()

    def test_commands_and_options(self, project: Any) -> None:
        assert self.complete(project, "iii wo") == ["worker"]
        assert self.complete(project, "iii worker st") == ["start", "stop", "status"]
        assert "--timeout" in self.complete(project, "iii worker exec --t")

    def test_worker_names(self, project: Any) -> None:
        assert self.complete(project, "iii worker logs s") == ["slow", "still"]
        project.config.write_text("][")
        assert self.complete(project, "iii worker logs s") == []

    def test_a_script_for_the_shell(self, iii: Any) -> None:
        done = iii("--show-completion", env={"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": ""}, stdin=b"")
        assert done.code in (0, 1)  # 1 where the shell around the tests is none that it knows


class TestPlugins:
    """A distribution on the path, as pip would have left it."""

    @pytest.fixture
    def site(self, iii: Any) -> Any:
        site = iii.root / "site"

        def install(name: str, source: str) -> None:
            info = site / f"{name}-1.5.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
            (info / "entry_points.txt").write_text(f"[iii]\n{name} = {name}_plugin\n")
            (site / f"{name}_plugin.py").write_text(source)

        iii.env["PYTHONPATH"] = str(site)
        return install

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

    def test_commands_of_plugins_are_commands(self, iii: Any, site: Any) -> None:
        site("greeter", self.HELLO)
        assert "hello    Say hello" in iii("--help").out
        done = iii("hello", "--name", "world", "--loud")
        assert (done.code, done.out) == (0, "HELLO WORLD\n")
        assert "--loud" in iii("hello", "--help").out

    def test_the_listing_follows_what_is_installed(self, iii: Any, site: Any) -> None:
        assert "hello" not in iii("--help").out
        site("greeter", self.HELLO)
        assert "Say hello" in iii("--help").out
        module = iii.root / "site/greeter_plugin.py"
        module.write_text(self.HELLO.replace("Say hello", "Greet people"))
        os.utime(module, ns=(1, 1))
        assert "Greet people" in iii("--help").out
        assert "hello" not in iii("--help", env={"III_DISABLE_PLUGINS": "greeter"}).out
        cache = iii.root / "home/.iii/cache/commands.json"
        assert json.loads(cache.read_text())["commands"] == {}
        for nonsense in ("", "[]", '{"depends": 1}', "[" * 100_000):
            cache.write_text(nonsense)
            assert "Greet people" in iii("--help").out
        shutil.rmtree(iii.root / "site/greeter-1.5.dist-info")
        assert iii("hello").code == 2
        assert "hello" not in iii("--help").out

    def test_a_stale_listing_runs_nothing(self, iii: Any, site: Any) -> None:
        site("greeter", self.HELLO)
        iii("--help")
        cache = iii.root / "home/.iii/cache/commands.json"
        known = json.loads(cache.read_text())
        cache.write_text(json.dumps({**known, "commands": {"ghost": "Boo"}}))
        done = iii("ghost")
        assert done.code == 2
        assert "no plugin provides the command 'ghost' any more" in done.err
        assert iii("hello").out == "hello you\n"

    def test_a_listing_that_cannot_be_kept(self, iii: Any, site: Any) -> None:
        site("greeter", self.HELLO)
        (iii.root / "home/.iii").write_text("in the way")
        assert "Say hello" in iii("--help").out

    def test_two_plugins_with_one_command(self, iii: Any, site: Any) -> None:
        site("greeter", self.HELLO)
        site("welcomer", self.HELLO)
        shown = iii("--help")
        assert shown.code == 0
        assert "two plugins declare the Command 'hello'" in shown.err
        done = iii("hello")
        assert done.code == 1
        assert "[W211]" in done.err
        assert "greeter" in done.err
        assert "welcomer" in done.err

    def test_the_project_option_reaches_commands_of_plugins(self, iii: Any, site: Any) -> None:
        site(
            "greeter",
            self.HELLO.replace("import typer\n", "import typer\n    from iii_core.cli.state import state_of\n")
            .replace("def hello(name", "def hello(context: typer.Context, name")
            .replace('print(f"hello {name}"', 'print(state_of(context).project.config_path); print(f"hello {name}"'),
        )
        assert iii("-c", "other.yaml", "hello").out == f"{iii.root}/other.yaml\nhello you\n"

    def test_no_plugins_means_none(self, iii: Any, site: Any) -> None:
        site("greeter", self.HELLO)
        assert iii("--no-plugins", "hello").code == 2
        assert "hello" not in iii("--no-plugins", "--help").out
        assert iii("hello", env={"III_DISABLE_PLUGINS": "*"}).code == 2
        assert json.loads(iii("--no-plugins", "plugins", "list", "--json").out) == {"plugins": []}

    def test_a_broken_plugin_harms_nobody(self, iii: Any, site: Any) -> None:
        site("broken", "raise RuntimeError('boom')")
        site("greeter", self.HELLO)
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

    def test_core_commands_never_import_plugins(self, iii: Any, site: Any) -> None:
        site("tracer", "open('imported', 'w').close()")
        iii("worker", "list")
        assert not (iii.root / "imported").exists()
        iii("--help")
        assert (iii.root / "imported").exists()


def check_ran(code: int, said: str) -> None:
    """The engine ran and stopped, unless another one of this machine has the well-known port."""
    if code == 0:
        assert "engine ready on ws://127.0.0.1:49134" in said
    else:
        assert "W203" in said


class TestNewProject:
    """``iii`` where there is no config.yaml (spec protocol §8.1)."""

    def run_engine(self, iii: Any, *args: str) -> tuple[int, str]:
        """Run the engine until it says that it is ready, then stop it."""
        process = iii.start(*args, stdin=subprocess.DEVNULL, start_new_session=True)
        said = b""
        deadline = time.monotonic() + 30
        while b"engine ready" not in said and time.monotonic() < deadline:
            line = process.stderr.readline()
            if not line:
                break
            said += line
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=30)
        return process.returncode, (said + rest).decode()

    def test_elsewhere_it_is_created_and_the_engine_runs(self, iii: Any) -> None:
        iii.env["III_CONFIG_PATH"] = str(iii.root / "new.yaml")
        code, said = self.run_engine(iii)
        assert "Created " in said
        assert (iii.root / "new.yaml").read_text().endswith("workers: []\n")
        check_ran(code, said)

    def test_on_a_terminal_it_asks(self, iii: Any, terminal: Any) -> None:
        asked = terminal()
        asked.expect(rb"Create one\? \[Y/n\]")
        asked.send(b"n\n")
        assert asked.wait() == 1
        assert b"W170" in asked.seen
        assert not iii.config.exists()

    def test_enter_means_yes(self, iii: Any, terminal: Any) -> None:
        asked = terminal()
        asked.expect(rb"\[Y/n\]")
        asked.send(b"\n")
        asked.expect(rb"Created ")
        deadline = time.monotonic() + 20
        while not iii.config.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert iii.config.read_text().endswith("workers: []\n")
        os.killpg(asked.process.pid, signal.SIGKILL)

    def test_default_config_and_config_exclude_each_other(self, iii: Any) -> None:
        done = iii("--use-default-config", "-c", "x.yaml")
        assert done.code == 2
        assert "exclude each other" in done.err

    def test_default_config_writes_no_file(self, iii: Any) -> None:
        check_ran(*self.run_engine(iii, "--use-default-config"))
        assert not iii.config.exists()

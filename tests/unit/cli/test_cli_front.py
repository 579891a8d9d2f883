"""``iii`` itself: help, version, options, errors, completion, plugins, and making a configuration."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from iii_core import __version__
from iii_core.cli import program
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
        (["wroker"], "No such command 'wroker'. Did you mean 'iii worker'?"),
        (["worker", "lst"], "No such command 'lst'. Did you mean 'iii worker list'?"),
        (["worker", "stat"], "Did you mean 'iii worker status' or 'iii worker stats' or 'iii worker start'?"),
        (["plugins", "lst"], "No such command 'lst'. Did you mean 'list'?"),
        (["add", "x/y:1"], "Did you mean 'iii worker add'?"),
        (["help"], "Did you mean 'iii --help'?"),
        (["zzz"], "No such command 'zzz'.\n"),
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


def test_exec_without_dashes_says_where_they_go(project: Any) -> None:
    done = project("worker", "exec", "running", "ls", "-la")
    assert done.code == 2
    assert "hint: write '--' before the command" in done.err
    assert "hint: see 'iii worker exec --help'" in project("worker", "exec", "-q", "running", "--", "ls").err


def test_usage_lines_can_be_typed_as_they_are(iii: Any) -> None:
    """No types, no braces."""
    for args, usage in (
        ("worker start", "[OPTIONS] NAME"),
        ("worker remove", "[OPTIONS] NAME..."),
        ("worker exec", "[OPTIONS] NAME -- COMMAND [ARG]..."),
        ("trigger", "[OPTIONS] [FUNCTION] [KEY=VALUE]..."),
    ):
        done = iii(*args.split(), "--help")
        assert done.out.splitlines()[0] == f"Usage: iii {args} {usage}"
        assert "<" not in done.out


class TestWrongFolder:
    @pytest.fixture
    def sub(self, project: Any) -> Any:
        (project.root / ".iii").mkdir()
        (project.root / "a/b").mkdir(parents=True)
        return project.root / "a/b"

    @pytest.mark.parametrize(
        "args", [("list",), ("status", "running"), ("start", "running"), ("exec", "running", "--", "true")]
    )
    def test_the_project_around_it_is_named(self, project: Any, sub: Path, args: tuple[str, ...]) -> None:
        done = project("worker", *args, cwd=sub)
        assert f"there is no {sub}/config.yaml; try 'iii -c {project.config} …'" in done.err
        assert "there is no" not in project("worker", *args, cwd=project.root).err

    def test_a_config_that_was_named_and_is_not_there(self, iii: Any) -> None:
        assert f"No workers: there is no {iii.root}/nope.yaml" in iii("-c", "nope.yaml", "worker", "list").err
        assert f"note: there is no {iii.root}/nope.yaml" in iii("-c", "nope.yaml", "worker", "status", "x").err

    def test_no_project_within_a_project_by_accident(self, project: Any, sub: Path, terminal: Any) -> None:
        asked = terminal(env={"III_CONFIG_PATH": str(sub / "config.yaml")})
        asked.expect(rb"the project around this folder is .*\[y/N\]")
        asked.send(b"\n")
        assert asked.wait() == 1
        assert not (sub / "config.yaml").exists()

    def test_looking_leaves_nothing_behind(self, iii: Any) -> None:
        for args in (["worker", "list"], ["worker", "remove", "x"], ["worker", "logs", "x"], ["plugins", "list"]):
            iii(*args)
        assert sorted(path.name for path in iii.root.iterdir()) == ["home"]


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

            monkeypatch.setattr(program, "_run", fail)

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
        assert program.run([]) == code
        assert capsys.readouterr().err == text

    def test_the_unexpected_shows_no_traceback_and_no_content(
        self, failing: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        failing(ValueError(f"token={SECRET}"))
        assert program.run([]) == 1
        shown = capsys.readouterr().err
        assert shown == "error: [W900] internal error (ValueError)\nhint: run 'iii --debug …' to see where\n"

    def test_debug_shows_the_traceback(self, iii: Any) -> None:
        (iii.root / ".iii").mkdir()
        (iii.root / ".iii/engine.json").mkdir()  # nothing of ours makes a folder of it
        told = iii("--debug", "worker", "start", "x")
        assert "Traceback" in told.err
        assert "W112" in told.err
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
        assert self.complete(project, "iii worker st") == ["start", "stop", "status", "stats"]
        assert "--timeout" in self.complete(project, "iii worker exec --t")

    def test_worker_names(self, project: Any) -> None:
        assert self.complete(project, "iii worker logs s") == ["slow", "still"]
        project.config.write_text("][")
        assert self.complete(project, "iii worker logs s") == []

    def test_a_script_for_the_shell(self, iii: Any) -> None:
        done = iii("--show-completion", env={"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": ""}, stdin=b"")
        assert done.code in (0, 1)  # 1 where the shell around the tests is none that it knows


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

    @pytest.mark.usefixtures("transport")
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

    @pytest.mark.usefixtures("transport")
    def test_default_config_writes_no_file(self, iii: Any) -> None:
        check_ran(*self.run_engine(iii, "--use-default-config"))
        assert not iii.config.exists()


@pytest.fixture
def full() -> Iterator[Any]:
    """A file to which nothing can be written."""
    with Path("/dev/full").open("wb") as file:
        yield file


class TestOutput:
    @pytest.mark.parametrize("unbuffered", ["", "1"])
    @pytest.mark.parametrize(
        "args", [["--help"], ["--version"], ["worker", "list", "--json"], ["plugins", "list", "--json"]]
    )
    def test_results_that_do_not_arrive_are_an_error(
        self, iii: Any, full: Any, args: list[str], unbuffered: str
    ) -> None:
        iii.env["PYTHONUNBUFFERED"] = unbuffered
        process = iii.start(*args, stdout=full)
        said = process.communicate(timeout=20)[1].decode()
        assert process.returncode == 1
        assert said == (
            "error: [W107] cannot write the output: No space left on device\n"
            "hint: free some space, or write elsewhere\n"
        )

    @pytest.mark.parametrize(("args", "code"), [(["worker", "list"], 0), (["worker", "start", "x"], 1), (["x"], 2)])
    def test_words_that_do_not_arrive_change_no_exit_code(
        self, iii: Any, full: Any, args: list[str], code: int
    ) -> None:
        process = iii.start(*args, stdout=full, stderr=full)
        assert process.wait(20) == code

    def test_a_reader_that_went_away(self, iii: Any) -> None:
        ours, theirs = os.pipe()
        os.close(ours)
        process = iii.start("worker", "list", "--json", stdout=theirs)
        os.close(theirs)
        assert process.communicate(timeout=20)[1] == b""
        assert process.returncode == 141

"""``iii trigger``: its grammar, one call over a connection, and the whole way to a running engine."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from iii_core.cli.calling import call, decode, engine_url, invoke, payload, pretty
from iii_core.cli.state import State
from iii_core.errors import EngineError, InvalidValue, InvocationError, PluginMissing, UsageError
from iii_core.project.locate import locate_project, write_record
from iii_core.transport.port import ConnectionRequest, Message, Peer

ENGINE = "workers:\n  - name: iii-worker-manager\n    config: {port: 0}\n"


class TestPayload:
    @pytest.mark.parametrize(
        ("base", "pairs", "expected"),
        [
            (None, [], {}),
            ('{"a": 1}', [], {"a": 1}),
            ("[1, 2]", [], [1, 2]),
            ('"text"', [], "text"),
            (None, ["a=1", "b=true", "c=null"], {"a": 1, "b": True, "c": None}),
            (None, ["d=text", "e=", "f=x=y"], {"d": "text", "e": "", "f": "x=y"}),
            (None, ['a={"b": [1]}', "z=[1,"], {"a": {"b": [1]}, "z": "[1,"}),
            (None, ["a=1", "a=2"], {"a": 2}),
            (None, ["n=007", "s=\"7\"", "u=köttur"], {"n": "007", "s": "7", "u": "köttur"}),
            ('{"a": {"x": 1}, "b": 2}', ["a=3", "c=4"], {"a": 3, "b": 2, "c": 4}),
        ],
    )  # fmt: skip
    def test_grammar(self, base: str | None, pairs: list[str], expected: Any) -> None:
        assert json.loads(bytes(payload(base, pairs))) == expected

    def test_what_is_given_is_not_rewritten(self) -> None:
        assert bytes(payload('{ "n": 1.10, "n": 2 }', [])) == b'{ "n": 1.10, "n": 2 }'
        assert bytes(payload(None, ["big=123456789012345678901234567890"])) == b'{"big":123456789012345678901234567890}'

    @pytest.mark.parametrize(
        ("base", "pairs", "kind"),
        [("{", [], InvalidValue), ("", [], InvalidValue), ("[1]", ["a=1"], InvalidValue),
         ("[" * 100_000, [], InvalidValue),
         (None, ["pair"], UsageError), (None, ["=x"], UsageError), (None, ["a=\udcff"], InvalidValue)],
    )  # fmt: skip
    def test_refusals(self, base: str | None, pairs: list[str], kind: type[Exception]) -> None:
        with pytest.raises(kind):
            payload(base, pairs)


def test_results_are_shown_as_they_are() -> None:
    assert pretty(msgspec.Raw(b'{"n":1.10,"big":123456789012345678901234567890,"x":[]}')) == (
        '{\n  "n": 1.10,\n  "big": 123456789012345678901234567890,\n  "x": []\n}'
    )
    shown = pretty(msgspec.Raw('{"k":"\x9b2J\u202e"}'.encode()))
    assert shown == '{\n  "k": "\\u009b2J\\u202e"\n}'
    assert json.loads(shown) == {"k": "\x9b2J\u202e"}


class TestWhere:
    def test_url(self, tmp_path: Any) -> None:
        project = locate_project(cwd=tmp_path, environ={})
        assert engine_url(project, None, None) == "ws://127.0.0.1:49134"
        assert engine_url(project, "h.example", None) == "ws://h.example:49134"
        assert engine_url(project, "::1", 5) == "ws://[::1]:5"
        project.config_path.write_text("workers: [{name: iii-worker-manager, config: {port: 6000}}]")
        assert engine_url(project, None, None) == "ws://127.0.0.1:6000"
        assert engine_url(project, "localhost", None) == "ws://localhost:6000"
        assert engine_url(project, "elsewhere", None) == "ws://elsewhere:49134"
        assert engine_url(project, None, 7) == "ws://127.0.0.1:7"

    def test_url_of_a_listener_with_tls(self, tmp_path: Any) -> None:
        project = locate_project(cwd=tmp_path, environ={})
        write_record(project, control=tmp_path / "c", port=7000, secure=True)
        assert engine_url(project, None, None) == "wss://127.0.0.1:7000"
        assert engine_url(project, "localhost", None) == "wss://localhost:7000"
        write_record(project, control=tmp_path / "c", port=7000)
        assert engine_url(project, None, None) == "ws://127.0.0.1:7000"

    @pytest.mark.parametrize(
        ("address", "port", "url"),
        [
            ("wss://h.example:443", None, "wss://h.example:443"),
            ("wss://h.example:443/", 443, "wss://h.example:443/"),
            ("ws://h.example", None, "ws://h.example:49134"),
            ("wss://[::1]", 443, "wss://[::1]:443"),
            ("wss://h.example/engine?a=b", 1, "wss://h.example:1/engine?a=b"),
        ],
    )
    def test_a_whole_url(self, tmp_path: Any, address: str, port: int | None, url: str) -> None:
        assert engine_url(locate_project(cwd=tmp_path, environ={}), address, port) == url

    @pytest.mark.parametrize("address", ["http://h", "wss://", "wss://h:99999", "wss://[::1", "://h", "wss://h:x"])
    def test_what_is_no_url(self, tmp_path: Any, address: str) -> None:
        with pytest.raises(InvalidValue, match="--address"):
            engine_url(locate_project(cwd=tmp_path, environ={}), address, None)

    def test_two_ports(self, tmp_path: Any) -> None:
        with pytest.raises(UsageError, match="contradicts"):
            engine_url(locate_project(cwd=tmp_path, environ={}), "wss://h:443", 444)

    def test_no_transport(self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(PluginMissing, match="no installed transport"):
            call(State(use_plugins=False), "ws://127.0.0.1:1", "f", msgspec.Raw(b"{}"), 1)


@dataclass
class ScriptedPeer(Peer):
    """Gives these frames in turn; ``ID`` becomes the id of the call."""

    frames: list[bytes]
    sent: list[dict[str, Any]] = field(default_factory=list)
    request: ConnectionRequest = field(default_factory=lambda: ConnectionRequest(path="/"))

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        self.sent.append(json.loads(message.data))

    async def receive(self) -> Message:
        await trio.lowlevel.checkpoint()
        if not self.frames:
            raise trio.EndOfChannel
        return Message(data=self.frames.pop(0).replace(b"ID", self.sent[0]["invocation_id"].encode()))

    def abort(self) -> None:
        pass

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await trio.lowlevel.checkpoint()


class TestInvoke:
    async def ask(self, *frames: bytes) -> Any:
        self.peer = ScriptedPeer(list(frames))
        result = await invoke(self.peer, "a::b", msgspec.Raw(b'{"x":1}'))
        return None if result is None else json.loads(bytes(result))

    async def test_one_frame_out_and_the_matching_one_in(self) -> None:
        noise = (b'{"type":"workerregistered","worker_id":"w"}', b"", b"not json", b"[1]", b"[" * 100_000,
                 b'{"type":"invocationresult","invocation_id":"other","result":0}', b'{"type":5}')  # fmt: skip
        assert await self.ask(*noise, b'{"type":"invocationresult","invocation_id":"ID","result":{"y":2}}') == {"y": 2}
        sent = self.peer.sent[0]
        assert sent == {
            "type": "invokefunction", "invocation_id": sent["invocation_id"], "function_id": "a::b", "data": {"x": 1},
        }  # fmt: skip

    @pytest.mark.parametrize("tail", [b"", b',"result":null', b',"result":null,"error":null'])
    async def test_no_result(self, tail: bytes) -> None:
        assert await self.ask(b'{"type":"invocationresult","invocation_id":"ID"' + tail + b"}") is None

    async def test_errors(self) -> None:
        error = b'{"code":"c","message":"m","stacktrace":"s"}'
        with pytest.raises(InvocationError) as caught:
            await self.ask(b'{"type":"invocationresult","invocation_id":"ID","error":' + error + b"}")
        assert (caught.value.code, caught.value.message, caught.value.stacktrace) == ("c", "m", "s")
        with pytest.raises(InvocationError) as caught:
            await self.ask(b'{"type":"error","error":{"code":"AUTH_ERROR","message":"no"}}')
        assert caught.value.code == "AUTH_ERROR"
        with pytest.raises(EngineError, match="connection to the engine ended"):
            await self.ask(b'{"type":"workerregistered"}')

    def test_decode(self) -> None:
        assert decode(None) == decode(msgspec.Raw(b"[1]")) == {}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, shared_engine: Any) -> Iterator[Any]:
    """A project with a real engine on a free port."""
    project = type(shared_engine)(tmp_path_factory.mktemp("engine"), shared_engine.root.parent)
    project.env["XDG_RUNTIME_DIR"] = shared_engine.env["XDG_RUNTIME_DIR"]
    project.config.write_text(ENGINE)
    engine = project.start(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    for line in engine.stderr:
        if b"engine ready" in line:
            break
    yield project
    engine.send_signal(signal.SIGINT)
    engine.communicate(timeout=20)
    project.close()


@pytest.fixture(scope="module")
def shop(transport: None, running: Any) -> Iterator[None]:
    """A worker that is connected to the engine of `running`."""
    port = json.loads((running.root / ".iii/engine.json").read_text())["port"]
    program = [sys.executable, str(Path(__file__).with_name("shopworker.py")), str(port)]
    worker = subprocess.Popen(program, env=running.env, stdout=subprocess.PIPE)
    assert worker.stdout is not None
    assert worker.stdout.readline() == b"serving\n"
    yield
    worker.kill()
    worker.communicate(timeout=20)


@pytest.mark.usefixtures("transport")
class TestEngine:
    def test_result(self, running: Any) -> None:
        for args in (["trigger"], ["t"]):
            done = running(*args, "engine::functions::list", "include_internal=true", "search=functions")
            assert (done.code, done.err) == (0, "")
            assert "engine::functions::info" in [f["function_id"] for f in json.loads(done.out)["functions"]]
            assert done.out.startswith('{\n  "functions": [\n')

    def test_legacy_form(self, running: Any) -> None:
        done = running("trigger", "--function-id", "engine::functions::info", "--payload", '{"function_id": "nope"}')
        assert done.code == 1
        assert done.err.startswith("error: [NOT_FOUND] ")

    def test_remote_errors(self, running: Any) -> None:
        done = running("trigger", "no::such", "a=1")
        assert (done.code, done.out) == (1, "")
        assert done.err == (
            "error: [function_not_found] Function no::such not found\n"
            "hint: no connected worker provides it; 'iii worker list' shows whether its worker runs\n"
        )

    def test_what_may_have_been_meant(self, running: Any, shop: None) -> None:
        done = running("trigger", "shop::orders::lst")
        assert done.code == 1
        assert "hint: did you mean 'shop::orders::list'?\n" in done.err

    def test_an_error_of_a_worker(self, running: Any, shop: None) -> None:
        done = running("trigger", "shop::fail")
        assert (done.code, done.out) == (1, "")
        assert done.err == (
            "error: [sold_out] nothing is\\x1b[2J left\n"
            "stack trace of the worker:\n  Traceback\n    line 1\n  SoldOut\n"
        )

    def test_results_as_long_as_a_message_may_be(self, running: Any, shop: None) -> None:
        done = running("trigger", "shop::long")
        assert (done.code, done.err) == (0, "")
        assert len(done.out) > 60_000_000

    def test_help_of_a_function(self, running: Any) -> None:
        done = running("trigger", "engine::functions::info", "--help")
        assert done.code == 0
        assert done.out.startswith("engine::functions::info\n  ")
        assert running("trigger", "no::such", "-h").code == 1

    def test_address_and_port(self, running: Any, tmp_path: Any) -> None:
        port = json.loads((running.root / ".iii/engine.json").read_text())["port"]
        for args in (["--port", str(port)], ["--address", "localhost", "--port", str(port)]):
            done = running("trigger", "engine::workers::list", *args, cwd=tmp_path)
            assert done.code == 0
        assert list(tmp_path.iterdir()) == []  # calling leaves nothing behind


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        ([], 2, "which function?"),
        (["f", "--function-id", "g"], 2, "two functions"),
        (["f", "--json", "{}", "--payload", "{}"], 2, "--json and --payload"),
        (["f", "--json", "{"], 1, "--json is not valid JSON"),
        (["f", "nonsense"], 2, "'nonsense' is not KEY=VALUE"),
        (["f", "--port", "0"], 2, "--port '0' is not a number from 1 to 65535"),
        (["f", "--port", "x"], 2, "is not a number"),
        (["f", "--timeout-ms", "-5"], 2, "is not a number"),
        (["f", "--nope"], 2, "No such option"),
    ],
)
def test_command_line(iii: Any, args: list[str], code: int, text: str) -> None:
    done = iii("trigger", *args)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("error: ")
    assert text in done.err


@pytest.mark.usefixtures("transport")
def test_nobody_listens(iii: Any) -> None:
    done = iii("trigger", "f", "--port", "1")
    assert done.code == 1
    assert "[W201]" in done.err
    assert [path.name for path in iii.root.iterdir()] == ["home"]


def test_help(iii: Any) -> None:
    done = iii("trigger", "--help")
    assert (done.code, done.err) == (0, "")
    assert "Usage: iii trigger [OPTIONS] [FUNCTION] [KEY=VALUE]..." in done.out
    assert "--function-id" not in done.out


@pytest.mark.usefixtures("transport")
def test_no_answer_in_time(iii: Any) -> None:
    """A peer that takes the connection and says nothing."""
    import socket
    import time

    with socket.create_server(("127.0.0.1", 0)) as listener:
        begun = time.monotonic()
        done = iii("trigger", "f", "--port", str(listener.getsockname()[1]), "--timeout-ms", "400")
        assert done.code == 1
        assert "no answer from 'f' within 0.4 s" in done.err
        assert time.monotonic() - begun < 30

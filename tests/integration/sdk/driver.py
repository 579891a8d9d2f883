"""Starts and moves the clients of ``clients/``: SDK processes that obey commands."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from iiitools.sdks import Sdk
from iiitools.waiting import PATIENCE

CLIENTS = Path(__file__).parent / "clients"


class CallFailed(Exception):
    """What the SDK raised in its process.

    Attributes:
        sdk_error: whether it was the SDK's own error class for failed invocations.
        type: that class's name.
    """

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(f"{error.get('type')}: {error.get('code')}: {error.get('message')}")
        self.sdk_error: bool = error["sdk_error"]
        self.type: str = error["type"]
        self.code: str | None = error.get("code")
        self.message: str = error["message"]
        self.stacktrace: str | None = error.get("stacktrace")


@dataclass(eq=False)
class Client:
    """One SDK process. Methods may be called concurrently; commands run concurrently in the process, too."""

    sdk: Sdk
    name: str
    process: trio.Process
    has_metadata: bool = False
    output: list[str] = field(default_factory=list)
    _events: list[dict[str, Any]] = field(default_factory=list)
    _answers: dict[int, dict[str, Any] | None] = field(default_factory=dict)
    _changed: trio.Event = field(default_factory=trio.Event)
    _count: int = 0
    _sending: trio.Lock = field(default_factory=trio.Lock)

    async def do(self, op: str, **arguments: Any) -> Any:
        """Run a command and give its result. Raises `CallFailed`."""
        self._count += 1
        number = self._count
        self._answers[number] = None
        line = json.dumps({"id": number, "op": op, **arguments}) + "\n"
        assert self.process.stdin is not None
        async with self._sending:
            await self.process.stdin.send_all(line.encode())
        await self._until(lambda: self._answers[number] is not None, f"the answer to {op} {arguments}")
        answer = self._answers.pop(number)
        assert answer is not None
        if "error" in answer:
            raise CallFailed(answer["error"])
        return answer["ok"]

    async def call(self, function_id: str, payload: Any = None, **options: Any) -> Any:
        """Call a function through the SDK."""
        if payload is not None:
            options["payload"] = payload
        return await self.do("call", function_id=function_id, **options)

    async def event(self, kind: str, **wanted: Any) -> dict[str, Any]:
        """Wait for an event with these values and take it."""

        def matches(event: dict[str, Any]) -> bool:
            return event["event"] == kind and all(event.get(key) == value for key, value in wanted.items())

        await self._until(lambda: any(map(matches, self._events)), f"the event {kind} {wanted}")
        found = next(event for event in self._events if matches(event))
        self._events.remove(found)
        return found

    def seen(self, kind: str, **wanted: Any) -> bool:
        """Whether such an event has come and was not taken."""
        return any(
            event["event"] == kind and all(event.get(key) == value for key, value in wanted.items())
            for event in self._events
        )

    async def read(self) -> None:
        """Read the process's output until it ends."""
        assert self.process.stdout is not None
        rest = b""
        async for data in self.process.stdout:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._take(line.decode(errors="replace"))
        self._wake()

    def _take(self, line: str) -> None:
        if not line.startswith("@"):
            self.output.append(line)
            return
        message = json.loads(line[1:])
        if "event" in message:
            self._events.append(message)
        else:
            self._answers[message["id"]] = message
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        with trio.move_on_after(PATIENCE):
            while not condition():
                if self.process.returncode is not None:
                    break
                await self._changed.wait()
        if not condition():
            tail = "\n".join(self.output[-20:])
            raise AssertionError(f"{self.sdk.label} ({self.process.returncode}) did not give {what}; it said:\n{tail}")


@asynccontextmanager
async def open_client(
    sdk: Sdk, url: str, home: Path, *, name: str | None = None, env: Mapping[str, str] | None = None
) -> AsyncGenerator[Client, None]:
    """A connected SDK process, killed in the end. Telemetry is off unless ``env`` says otherwise."""
    name = name or sdk.label
    script = prepare(sdk, CLIENTS / ("client.py" if sdk.language == "python" else "client.mjs"))
    env = {"OTEL_SERVICE_NAME": name, **sdk.environment, **(env or {})}
    async with open_process([sdk.interpreter, str(script), name], url, home, env=env) as process:
        client = Client(sdk, name, process)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.read)
            await client.event("ready")
            client.has_metadata = (await client.do("about"))["has_metadata"]
            yield client
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_process(
    command: list[str], url: str, home: Path, *, env: Mapping[str, str] | None = None
) -> AsyncGenerator[trio.Process, None]:
    """A program that finds the engine at ``III_URL``, killed in the end."""
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "III_URL": url,
        "OTEL_ENABLED": "false",
        **(env or {}),
    }
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environ, cwd=home
    )
    try:
        yield process
    finally:
        process.kill()
        with trio.move_on_after(5, shield=True):
            await process.wait()


def prepare(sdk: Sdk, script: Path) -> Path:
    """Where ``script`` is run from: Node.js looks for packages beside the script itself."""
    if sdk.language == "python":
        return script
    target = sdk.folder / script.name
    if not target.exists() or target.read_bytes() != script.read_bytes():
        shutil.copy(script, target)
    return target


async def end(client: Client, sign: signal.Signals) -> int:
    """Send a signal and give the exit status."""
    client.process.send_signal(sign)
    with trio.fail_after(PATIENCE):
        return await client.process.wait()

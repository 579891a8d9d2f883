"""A worker that speaks the wire protocol by hand, for tests that must say exactly what is sent and when."""

from __future__ import annotations

import json
import uuid
from collections import deque
from typing import Any

import trio
import trio.testing

from iii_core.testing.memory_transport import MemoryPeer
from iii_core.transport.port import Message, MessageTransport, Peer

PATIENCE = 30.0
"""Seconds after which a frame that should come counts as missing."""


class WireWorker:
    """A connected worker. Frames are dicts; what was received while looking for another frame is kept in order.

    Attributes:
        peer: the connection.
        worker_id, reattach_token: as the engine gave them in its first frame.
    """

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.worker_id = ""
        self.reattach_token = ""
        self._kept: deque[dict[str, Any]] = deque()

    @classmethod
    async def connect(cls, transport: MessageTransport, url: str, **headers: str) -> WireWorker:
        """Dial, and take the engine's first frame."""
        worker = cls(await transport.connect(url, headers=headers))
        hello = await worker.expect("workerregistered")
        worker.worker_id, worker.reattach_token = hello["worker_id"], hello["reattach_token"]
        return worker

    async def send(self, type: str, **fields: Any) -> None:
        """Send one message."""
        await self.send_text(json.dumps({**fields, "type": type}))

    async def send_text(self, frame: str | bytes) -> None:
        """Send any text frame."""
        await self.peer.send(Message(data=frame.encode() if isinstance(frame, str) else frame))

    async def receive(self) -> dict[str, Any]:
        """The next frame that nobody looked for yet."""
        if self._kept:
            return self._kept.popleft()
        with trio.fail_after(PATIENCE):
            message = await self.peer.receive()
        frame: dict[str, Any] = json.loads(message.data)
        return frame

    async def expect(self, type: str) -> dict[str, Any]:
        """The next frame, which must be of that type."""
        frame = await self.receive()
        assert frame["type"] == type, f"expected {type}, got {frame}"
        return frame

    async def look_for(self, type: str, **fields: Any) -> dict[str, Any]:
        """The first frame of that type with those fields; frames before it are kept."""
        passed: list[dict[str, Any]] = []
        while True:
            frame = await self.receive()
            if frame["type"] == type and all(frame.get(key) == value for key, value in fields.items()):
                self._kept.extendleft(reversed(passed))
                return frame
            passed.append(frame)

    async def settle(self) -> None:
        """Wait until the engine has handled everything that was sent so far."""
        await self.send("ping")
        await self.look_for("pong")

    async def expect_silence(self) -> None:
        """Everything sent is handled, and nothing was received that nobody looked for."""
        await self.settle()
        assert not self._kept, f"unexpected frames: {list(self._kept)}"

    async def vanish(self) -> None:
        """Drop the connection, and wait until nobody in this program has anything left to do about it.

        The engine may be resting after a long step, and sees the end of the connection only then.
        """
        self.peer.abort()
        if isinstance(self.peer, MemoryPeer):
            with trio.fail_after(PATIENCE):
                await self.peer.served.wait()
        await trio.testing.wait_all_tasks_blocked()

    async def start_call(self, function_id: str, data: Any = None, **fields: Any) -> str:
        """Send a call; gives its id."""
        invocation_id = str(uuid.uuid4())
        await self.send("invokefunction", invocation_id=invocation_id, function_id=function_id, data=data, **fields)
        return invocation_id

    async def result(self, invocation_id: str) -> dict[str, Any]:
        """The answer to a call."""
        return await self.look_for("invocationresult", invocation_id=invocation_id)

    async def call(self, function_id: str, data: Any = None, **fields: Any) -> Any:
        """Call and give the result; an error fails the test."""
        answer = await self.result(await self.start_call(function_id, data, **fields))
        assert "error" not in answer, answer
        return answer.get("result")

    async def call_error(self, function_id: str, data: Any = None, **fields: Any) -> dict[str, Any]:
        """Call and give the error; a result fails the test."""
        answer = await self.result(await self.start_call(function_id, data, **fields))
        assert "error" in answer, answer
        error: dict[str, Any] = answer["error"]
        return error

    async def answer(self, call: dict[str, Any], result: Any = None, **fields: Any) -> None:
        """Answer a received call."""
        await self.send(
            "invocationresult",
            invocation_id=call["invocation_id"],
            function_id=call["function_id"],
            **({"result": result} | fields),
        )

    async def describe(self, **data: Any) -> None:
        """What SDKs send first: ``engine::workers::register``, void and without an id."""
        await self.send("invokefunction", function_id="engine::workers::register", data=data, action={"type": "void"})

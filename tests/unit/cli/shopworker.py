"""A worker without an SDK: ``shopworker.py PORT`` connects, offers the functions of `ANSWERS`, and says ``serving``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

import trio

from iii_core.host import PluginHost
from iii_core.records import OpenContext, Transport
from iii_core.transport.port import Message, Peer

ERROR: Final = {"code": "sold_out", "message": "nothing is\x1b[2J left", "stacktrace": "Traceback\n  line 1\nSoldOut\n"}
ANSWERS: Final[dict[str, dict[str, Any]]] = {
    "shop::orders::list": {"result": []},
    "shop::fail": {"error": ERROR},
    "shop::long": {"result": "x" * 66_000_000},
}


async def serve(peer: Peer) -> None:
    for function in ANSWERS:
        await peer.send(Message(data=json.dumps({"type": "registerfunction", "id": function}).encode()))
    told = False
    while True:
        frame = json.loads((await peer.receive()).data)
        if not told:
            await peer.send(ask_for_functions())
            told = True
        if frame["type"] == "invokefunction":
            answer = {key: frame[key] for key in ("invocation_id", "function_id")} | ANSWERS[frame["function_id"]]
            await peer.send(Message(data=json.dumps({"type": "invocationresult", **answer}).encode()))
        elif frame["type"] == "invocationresult":
            print("serving", flush=True)


def ask_for_functions() -> Message:
    """A call whose answer says that all that was sent before it has been taken."""
    call = {"type": "invokefunction", "invocation_id": "11111111-1111-4111-8111-111111111111",
            "function_id": "engine::functions::list", "data": {}}  # fmt: skip
    return Message(data=json.dumps(call).encode())


async def main(port: str) -> None:
    record = PluginHost.create(installed=True, environ=os.environ).collect(Transport)["websocket"]
    folder = Path("/nonexistent")
    context = OpenContext(state_dir=folder, runtime_dir=folder, home=folder, environ=os.environ)
    async with record.open(record.config(), context) as transport:
        await serve(await transport.connect(f"ws://127.0.0.1:{port}"))


if __name__ == "__main__":
    trio.run(main, sys.argv[1])

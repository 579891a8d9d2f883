"""Valid frames of every type, broken in one place: each is dropped, the connection answers on, and nothing changes.

Which mutants are malformed follows from the rules of spec protocol §1.2 and §1.4 alone, not from our decoder.
"""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, get_args

import msgspec
import pytest

from iii_core.protocol import messages as m
from iii_core.transport.port import Message

VALID: dict[str, dict[str, Any]] = {
    "registertriggertype": {"id": "tt", "description": "d", "trigger_request_format": {}, "call_request_format": {}},
    "unregistertriggertype": {"id": "kept-type"},
    "registertrigger": {"id": "t", "trigger_type": "x", "function_id": "f", "config": {}, "metadata": {"a": 1}},
    "triggerregistrationresult": {
        "id": "kept-trigger",
        "trigger_type": "kept-type",
        "function_id": "f",
        "error": {"code": "c", "message": "m"},
    },
    "unregistertrigger": {"id": "kept-trigger", "trigger_type": "kept-type"},
    "registerfunction": {"id": "f", "description": "d", "metadata": {}},
    "unregisterfunction": {"id": "kept::f"},
    "invokefunction": {
        "function_id": "engine::workers::list",
        "invocation_id": "i",
        "data": {},
        "traceparent": "00-1-2-03",
        "baggage": "a=b",
        "action": {"type": "void"},
    },
    "invocationresult": {
        "invocation_id": "i",
        "function_id": "f",
        "error": {"code": "c", "message": "m", "stacktrace": "s"},
    },
    "registerservice": {"id": "s"},
    "reattach": {"previous_worker_id": "w", "reattach_token": "t"},
    "ping": {},
    "pong": {},
}
REQUIRED = {
    "registertriggertype": ["id"],
    "unregistertriggertype": ["id"],
    "registertrigger": ["id", "trigger_type", "function_id"],
    "triggerregistrationresult": ["id", "trigger_type", "function_id"],
    "unregistertrigger": ["id"],
    "registerfunction": ["id"],
    "unregisterfunction": ["id"],
    "invokefunction": ["function_id"],
    "invocationresult": ["invocation_id", "function_id"],
    "registerservice": ["id"],
    "reattach": ["previous_worker_id"],
}
TEXTS = {"id", "description", "trigger_type", "function_id", "invocation_id", "traceparent", "baggage"}
TEXTS |= {"previous_worker_id", "reattach_token"}
NOT_TEXT = [7, -1.5, True, [], ["id"], {}, {"id": "x"}]
NOT_ERROR = ["no", 1, [], {"code": "c"}, {"message": "m"}, {"code": 1, "message": "m"}, {"code": "c", "message": None}]
NOT_ACTION = ["void", 1, [], {}, {"type": "later"}, {"type": None}, {"queue": "q"}, {"type": "enqueue", "queue": 1}]
NOT_JSON = ["{", "}", '"', "\x00", ",", "NaN", "'", "\\"]
NOT_UTF8 = [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"]
WHOLE = [b"[]", b"1", b"null", b'"ping"', b"[" * 30_000, b'{"a":' * 30_000, b"\x00", b"{}", b'[{"type":"ping"}]']


def encoded(kind: Any, fields: dict[str, Any]) -> bytes:
    return json.dumps({**fields, "type": kind}).encode()


def wrong_values(name: str) -> list[Any]:
    if name in TEXTS:
        return NOT_TEXT
    return {"error": NOT_ERROR, "action": NOT_ACTION}.get(name, [])


def mutants(rng: random.Random, kind: str) -> Iterator[bytes]:
    """One malformed frame of each sort that the type allows."""
    fields = VALID[kind]
    frame = encoded(kind, fields)
    yield frame[: rng.randrange(1, len(frame))]
    yield frame + rng.choice(NOT_JSON).encode()
    yield rng.choice(NOT_JSON).encode() + frame
    at = frame.index(b'"type"') + 2
    yield frame[:at] + rng.choice(NOT_UTF8) + frame[at:]
    yield encoded(rng.choice(["", kind.upper(), kind + "x", " " + kind, None, 1, [kind], {"type": kind}]), fields)
    yield json.dumps(fields).encode()
    yield rng.choice(WHOLE)
    for name in REQUIRED.get(kind, []):
        yield encoded(kind, {key: value for key, value in fields.items() if key != name})
        yield encoded(kind, fields | {name: None})
    for name in fields:
        for value in rng.sample(wrong_values(name), min(3, len(wrong_values(name)))):
            yield encoded(kind, fields | {name: value})


def test_every_type_of_message_is_mutated() -> None:
    """A type that is added to the protocol must be added here."""
    kinds = {str(kind.__struct_config__.tag) for kind in get_args(m.FromWorker)}
    assert kinds == VALID.keys()
    required = {
        kind.__struct_config__.tag: [field.encode_name for field in msgspec.structs.fields(kind) if field.required]
        for kind in get_args(m.FromWorker)
    }
    assert {kind: names for kind, names in required.items() if names} == REQUIRED


def state(router: Any) -> Any:
    """Everything that a message could change."""
    return (
        {found.id: found.owner.id for found in router.functions},
        {found.id: (found.type, found.active) for found in router.triggers},
        {found.id: found.provider.id for found in router.triggers.types},
        {
            worker.id: (dict(worker.functions), set(worker.triggers), set(worker.trigger_types), set(worker.unserved))
            for worker in router.workers.values()
        },
        [(worker.credit.owed, len(worker.calls), len(worker.executing)) for worker in router.workers.values()],
    )


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", VALID)
async def test_a_broken_frame_is_dropped(
    bench: Any, connect: Callable[[], Awaitable[Any]], kind: str, seed: int
) -> None:
    worker = await connect()
    await worker.send("registerfunction", id="kept::f")
    await worker.send("registertriggertype", id="kept-type")
    await worker.send("registertrigger", id="kept-trigger", trigger_type="kept-type", function_id="kept::f", config={})
    await worker.expect("registertrigger")
    await worker.settle()
    before = state(bench.engine.router)
    for mutant in mutants(random.Random(f"{kind} {seed}"), kind):
        if mutant.isascii() or mutant.decode(errors="ignore").encode() == mutant:
            await worker.peer.send(Message(data=mutant, text=True))
        await worker.peer.send(Message(data=mutant, text=False))
        await worker.expect_silence()
        assert state(bench.engine.router) == before, mutant
    assert {row.id for row in bench.engine.workers} == {worker.worker_id}


@pytest.mark.parametrize("kind", VALID)
async def test_the_frame_before_the_mutation_is_a_message(
    connect: Callable[[], Awaitable[Any]], caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """Else the mutants would prove nothing."""
    worker = await connect()
    await worker.send_text(encoded(kind, VALID[kind]))
    await worker.settle()
    assert "dropped a frame" not in caplog.text

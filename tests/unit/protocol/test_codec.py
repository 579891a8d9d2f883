"""Frames as SDKs send them, and as they must not be sent to them (spec protocol §1.2, §1.4, §11 #1, #2, #7)."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from iii_core.protocol import messages as m
from iii_core.protocol.codec import CALLER_FIELDS, MalformedFrame, TooManyFields, body_of, decode, encode, with_caller

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=6,
)


def parse(**frame: Any) -> Any:
    return decode(json.dumps(frame).encode(), text=True)


REQUIRED: dict[str, dict[str, Any]] = {
    "registertriggertype": {"id": "x"},
    "unregistertriggertype": {"id": "x"},
    "registertrigger": {"id": "x", "trigger_type": "t", "function_id": "f"},
    "triggerregistrationresult": {"id": "x", "trigger_type": "t", "function_id": "f"},
    "unregistertrigger": {"id": "x"},
    "registerfunction": {"id": "x"},
    "unregisterfunction": {"id": "x"},
    "invokefunction": {"function_id": "f"},
    "invocationresult": {"invocation_id": "i", "function_id": "f"},
    "registerservice": {"id": "x"},
    "reattach": {"previous_worker_id": "w"},
    "ping": {},
    "pong": {},
}
OPTIONAL: dict[str, list[str]] = {
    "registertriggertype": ["description", "trigger_request_format", "call_request_format", "namespace"],
    "registertrigger": ["config", "metadata", "namespace", "trigger_namespace"],
    "triggerregistrationresult": ["error", "namespace"],
    "unregistertrigger": ["trigger_type", "namespace"],
    "registerfunction": ["description", "request_format", "response_format", "metadata", "invocation", "observe"],
    "invokefunction": ["invocation_id", "data", "traceparent", "baggage", "action", "metadata", "namespace", "caller"],
    "invocationresult": ["result", "error", "traceparent", "baggage"],
    "registerservice": ["name", "description", "parent_service_id"],
    "reattach": ["reattach_token"],
}


@pytest.mark.parametrize("kind", REQUIRED)
def test_what_is_required_suffices_and_the_order_of_keys_is_free(kind: str) -> None:
    message = decode(json.dumps(REQUIRED[kind] | {"type": kind}).encode(), text=True)
    assert message == decode(json.dumps({"type": kind} | REQUIRED[kind]).encode(), text=True)
    assert message is not None
    assert message.__struct_config__.tag == kind


@pytest.mark.parametrize("kind", REQUIRED)
def test_each_required_field_is_required_and_typed(kind: str) -> None:
    for field in REQUIRED[kind]:
        rest = {key: value for key, value in REQUIRED[kind].items() if key != field}
        for frame in (rest, rest | {field: 3}, rest | {field: None}, rest | {field: ["x"]}):
            with pytest.raises(MalformedFrame):
                parse(type=kind, **frame)


@pytest.mark.parametrize("kind", OPTIONAL)
def test_optional_fields_may_be_null_and_null_is_not_sent_on(kind: str) -> None:
    nulls = dict.fromkeys(OPTIONAL[kind])
    bare, explicit = parse(type=kind, **REQUIRED[kind]), parse(type=kind, **REQUIRED[kind], **nulls)
    for name in bare.__struct_fields__:
        left, right = getattr(bare, name), getattr(explicit, name)
        if isinstance(left, Raw):
            assert m.present(left) is m.present(right) is m.ABSENT
        else:
            assert left == right
    extra = parse(type=kind, **REQUIRED[kind], message_type=kind, unknown={"deep": [1]}, revision=2)
    assert extra == bare


@pytest.mark.parametrize(
    "frame",
    [
        b"{",
        b"[]",
        b"null",
        b'"ping"',
        b"1",
        b'{"type":"unknown"}',
        b'{"type":1}',
        b'{"type":null}',
        b'{"id":"x"}',
        b'{"type":"ping"} x',
        b'{"type":"ping","type":"nope"}',
        b'{"type":"PING"}',
        b'{"type":"invokefunction","function_id":"f","action":{"type":"later"}}',
        b'{"type":"invokefunction","function_id":"f","action":"void"}',
        b'{"type":"invokefunction","function_id":"f","data":{"a":}}',
        b'{"type":"invokefunction","function_id":"f","data":NaN}',
        b'{"type":"invokefunction","function_id":"f","data":"\x00"}',
        b'{"type":"invocationresult","invocation_id":"i","function_id":"f","error":"boom"}',
        b'{"type":"invokefunction","function_id":"f","data":' + b"[" * 100_000,
        b'{"type":"invokefunction","function_id":"f","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"type":"invokefunction","function_id":"f","data":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        b"\x00\x01\x02",
        b"\xef\xbb\xbf{}",
    ],
    ids=lambda frame: frame[:60].decode("latin-1") if isinstance(frame, bytes) else str(frame),
)
def test_malformed_frames(frame: bytes) -> None:
    for text in (True, False):
        with pytest.raises(MalformedFrame) as caught:
            decode(frame, text=text)
        assert len(str(caught.value)) < 300, "a hostile frame must not be written to the log"


@pytest.mark.parametrize("frame", [b"", b" ", b"\r\n\t "])
def test_blank_frames_are_no_message(frame: bytes) -> None:
    assert decode(frame, text=True) is None


@pytest.mark.parametrize("bad", [b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"])
def test_binary_json_is_checked_to_be_utf8(bad: bytes) -> None:
    body = b'{"type":"invokefunction","function_id":"f","data":"' + bad + b'"}'
    with pytest.raises(MalformedFrame):
        decode(body, text=False)
    assert decode(body.replace(bad, "é".encode()), text=False) is not None


@settings(max_examples=60)
@given(frame=st.binary(max_size=300), text=st.booleans())
def test_any_bytes_are_a_message_or_malformed(frame: bytes, text: bool) -> None:
    with suppress(MalformedFrame):
        decode(frame, text=text and _is_utf8(frame))


@settings(max_examples=60)
@given(kind=st.sampled_from(sorted(REQUIRED)), fields=st.dictionaries(st.text(max_size=5) | st.just("id"), JSON))
def test_any_object_is_a_message_or_malformed(kind: str, fields: dict[str, Any]) -> None:
    for frame in ({"type": kind} | fields, {"type": kind} | fields | REQUIRED[kind], fields):
        with suppress(MalformedFrame):
            decode(json.dumps(frame).encode(), text=True)


def _is_utf8(frame: bytes) -> bool:
    try:
        frame.decode()
    except UnicodeDecodeError:
        return False
    return True


@settings(max_examples=60)
@given(value=JSON)
def test_bodies_pass_byte_for_byte(value: Any) -> None:
    body = json.dumps(value, indent=1).encode()
    frame = b'{"type":"invokefunction","data":' + body + b',"function_id":"f","metadata":' + body + b"}"
    message = decode(frame, text=True)
    assert isinstance(message, m.InvokeFunction)
    assert bytes(message.data) == bytes(message.metadata) == body
    assert encode(message).count(body) == 2


@settings(max_examples=60)
@given(value=st.dictionaries(st.text(), JSON), worker_id=st.uuids())
def test_the_caller_is_put_into_objects(value: dict[str, Any], worker_id: object) -> None:
    body = with_caller(body_of(value), str(worker_id))
    assert json.loads(bytes(body)) == value | {"_caller_worker_id": str(worker_id)}


KEY = '"_caller_worker_id"'
ESCAPED = r'"_caller_worker\u005fid"'


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("{}", {}),
        ("{ \n}", {}),
        (f"{{ {KEY} : 1 }}", {}),
        (f'{{{KEY}:"x"}}', {}),
        (f'{{ {KEY} : "x" ,"a":1}}', {"a": 1}),
        (f'{{{KEY}:"x",{KEY}:"y","a":1,{ESCAPED}:"z"}}', {"a": 1}),
        (f'{{{KEY}:"a\\",","a":1}}', {"a": 1}),
        (f'{{"a":{{{KEY}:1}},"b":[{{{ESCAPED}:1}}],"c":"_caller_worker_id"}}', None),
        (f'{{"\\u00e9":{{{KEY}:2}},{ESCAPED}:1}}', {"é": {"_caller_worker_id": 2}}),
    ],
)
def test_the_caller_is_there_once_whatever_was_written(text: str, kept: dict[str, Any] | None) -> None:
    found = json.loads(bytes(with_caller(Raw(text.encode()), "w")), object_pairs_hook=Pairs)
    names = [name for name, _ in found.pairs]
    assert names.count("_caller_worker_id") == 1
    wanted = json.loads(text) if kept is None else kept
    assert json.loads(json.dumps(found)) == wanted | {"_caller_worker_id": "w"}


class Pairs(dict[str, Any]):
    """An object that remembers how often each key was written."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


class TestManyFields:
    """An object of millions of fields must not be taken apart: that took seconds and gigabytes."""

    FIELDS = ",".join(f'"{number}":0' for number in range(CALLER_FIELDS))

    @pytest.mark.parametrize("first", ["", f'{KEY}:"x",', r'"\u00e9":{"_caller_worker_id":1},'])
    def test_fields_are_not_decoded(self, first: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("iii_core.protocol.codec._objects", None)
        text = f"{{{first}{self.FIELDS}}}".encode()
        assert json.loads(bytes(with_caller(Raw(text), "w")))["_caller_worker_id"] == "w"

    @pytest.mark.parametrize("key", [KEY, ESCAPED])
    def test_a_caller_among_too_many_is_refused(self, key: str) -> None:
        with pytest.raises(TooManyFields, match=f"may have {CALLER_FIELDS} fields"):
            with_caller(Raw(f"{{{self.FIELDS},{key}:1}}".encode()), "w")


def test_output_never_has_optional_nulls() -> None:
    error = m.ErrorBody(code="c", message="", stacktrace=None)
    frames: list[m.ToWorker] = [
        m.InvocationResult(invocation_id="i", function_id="f", error=error),
        m.InvocationResult(invocation_id="i", function_id="f", result=m.present(m.NULL)),
        m.InvokeFunction(invocation_id="i", function_id="f", data=m.NULL),
        m.RegisterTrigger(id="t", trigger_type="x", function_id="f", config=m.EMPTY_OBJECT, metadata=m.ABSENT),
        m.UnregisterTrigger(id="t", trigger_type="x"),
        m.TriggerRegistrationResult(id="t", trigger_type="x", function_id="f", error=error),
        m.WorkerRegistered(worker_id="w", reattach_token="r"),
        m.Pong(),
    ]
    assert [json.loads(encode(frame)) for frame in frames] == [
        {
            "type": "invocationresult",
            "invocation_id": "i",
            "function_id": "f",
            "error": {"code": "c", "message": ""},
        },
        {"type": "invocationresult", "invocation_id": "i", "function_id": "f"},
        {"type": "invokefunction", "invocation_id": "i", "function_id": "f", "data": None},
        {"type": "registertrigger", "id": "t", "trigger_type": "x", "function_id": "f", "config": {}},
        {"type": "unregistertrigger", "id": "t", "trigger_type": "x"},
        {
            "type": "triggerregistrationresult",
            "id": "t",
            "trigger_type": "x",
            "function_id": "f",
            "error": {"code": "c", "message": ""},
        },
        {"type": "workerregistered", "worker_id": "w", "reattach_token": "r"},
        {"type": "pong"},
    ]

"""Frames to messages and back. No frame a peer can send makes anything but `MalformedFrame` come out of here."""

from __future__ import annotations

import re
from typing import Final

import msgspec
from msgspec import Raw

from iii_core.errors import IIIError
from iii_core.protocol.messages import ABSENT, EMPTY_OBJECT, NULL, FromWorker, InvokeFunction, ToWorker, present

CALLER_KEY: Final = "_caller_worker_id"
TELEMETRY_KINDS: Final = frozenset({b"OTLP", b"MTRC", b"LOGS"})
"""First four bytes of binary frames that carry telemetry instead of a message (spec protocol §1.2)."""

CALLER_FIELDS: Final = 100_000
"""Fields, at all depths, of an object that names a caller itself and not first: those are decoded one by one."""

_KEY: Final = CALLER_KEY.encode()
_SPACE: Final = rb"[ \t\r\n]*"
_OWN_CALLER: Final = re.compile(rb'\{%b"_caller_worker_id"%b:%b"[^"\\]*"%b,' % (_SPACE, _SPACE, _SPACE, _SPACE))
"""How an object begins that the engine gave to a worker which passes it on."""
_EMPTY: Final = re.compile(rb"\{%b\}" % _SPACE)


class _Called(msgspec.Struct):
    caller: Raw = msgspec.field(default=ABSENT, name="_caller_worker_id")


_called = msgspec.json.Decoder(_Called)
_frames: msgspec.json.Decoder[FromWorker] = msgspec.json.Decoder(FromWorker)
_objects = msgspec.json.Decoder(dict[str, Raw])
_encoder = msgspec.json.Encoder()


class TooManyFields(IIIError):
    """An object is too large to take the caller's id out of it."""


class MalformedFrame(IIIError):
    """A frame that is no message. It is dropped and the connection kept (spec protocol §1.2)."""


def decode(frame: bytes, *, text: bool) -> FromWorker | None:
    """The message in a frame, or None for a blank one.

    Args:
        frame: one whole frame; ``text`` frames were checked to be UTF-8 by the transport, others are checked here.

    Raises:
        MalformedFrame: not JSON, not UTF-8, nested too deep, an unknown ``type``, a missing field or a wrong one.
    """
    try:
        if not text:
            str(frame, "utf-8")
        return _frames.decode(frame)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        if not frame.strip():
            return None
        raise MalformedFrame(f"dropped a frame of {len(frame)} bytes: {error}") from error


def encode(message: ToWorker) -> bytes:
    """The text frame of a message."""
    return _encoder.encode(message)


def encode_for_engine(message: FromWorker) -> bytes:
    """The text frame of a message as a worker sends it (for clients and tests)."""
    return _encoder.encode(message)


def body_of(value: object) -> Raw:
    """A value as a body; a `msgspec.Raw` is taken as it is.

    Raises:
        TypeError, ValueError: JSON cannot express the value.
    """
    if isinstance(value, Raw):
        return value
    return NULL if value is None else Raw(_encoder.encode(value))


def with_caller(data: Raw, worker_id: str) -> Raw:
    """``data`` with the caller's id in it, if it is an object (spec protocol §1.7); else ``data`` unchanged.

    What the caller itself wrote under that key is replaced, however often it is there. The id is put in front of the
    text, which is decoded only where the key is in it: an object of a million fields costs no more than its copy.

    Raises:
        TooManyFields: the key is in an object of more than `CALLER_FIELDS` fields, and not as its first.
    """
    text = bytes(data)
    if not text.startswith(b"{"):
        return data
    own = _encoder.encode(worker_id)
    known = _OWN_CALLER.match(text) if _KEY in text else None
    rest = b"{" + text[known.end() :] if known else text
    if not _names_caller(rest):
        comma = b"" if not text.startswith(b'{"') and _EMPTY.match(rest) else b","
        return Raw(b'{"%b":%b%b%b' % (_KEY, own, comma, rest[1:]))
    if rest.count(b":") > CALLER_FIELDS:
        raise TooManyFields(f"an object with {CALLER_KEY} that is not its first field may have {CALLER_FIELDS} fields")
    fields = _objects.decode(rest)
    fields[CALLER_KEY] = Raw(own)
    return Raw(_encoder.encode(fields))


def _names_caller(text: bytes) -> bool:
    r"""Whether an object has the key. Only a ``\u00..`` escape can spell one of its letters in another way."""
    if _KEY not in text and b"\\u00" not in text:
        return False
    return _called.decode(text).caller is not ABSENT


def is_object(data: Raw) -> bool:
    """Whether a body is a JSON object, by its first byte: the frame around it was parsed already."""
    view = memoryview(data)
    return view.nbytes > 0 and view[0] == 0x7B


def call_frame(
    message: InvokeFunction, invocation_id: str, function_id: str, data: Raw, metadata: Raw
) -> InvokeFunction:
    """``message`` as the callee gets it: the engine's id, the callee's name of the function, never an ``action``."""
    return InvokeFunction(
        invocation_id=invocation_id,
        function_id=function_id,
        data=NULL if data is ABSENT else data,
        traceparent=message.traceparent,
        baggage=message.baggage,
        metadata=present(metadata),
    )


def trigger_config(config: Raw) -> Raw:
    """A trigger's config: a missing one is ``{}`` (spec protocol §11 #1)."""
    return EMPTY_OBJECT if config is ABSENT else config.copy()

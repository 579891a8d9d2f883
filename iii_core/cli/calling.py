"""Calling a function as a short-lived worker over one of the installed transports."""

from __future__ import annotations

import re
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlsplit

import msgspec
import trio

from iii_core.cli.running import run_async
from iii_core.errors import (
    EngineError,
    EngineNotRunning,
    IIIError,
    InvalidValue,
    InvocationError,
    PluginMissing,
    UsageError,
)
from iii_core.project.config import DEFAULT_PORT, load_config, manager_port
from iii_core.project.locate import read_record
from iii_core.records import OpenContext, Transport
from iii_core.transport.port import Limits, Message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from iii_core.cli.state import State
    from iii_core.project.locate import Project
    from iii_core.transport.port import Peer

LARGEST_RESULT: Final = 80 << 20  # more than an engine takes from a worker, with what comes around it
SUGGESTION_TIME: Final = 2.0
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
# What JSON text may hold raw, but a terminal may take for a command, or show in another order
_CONTROL = re.compile("[\x7f-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")


class _Error(msgspec.Struct, frozen=True):
    code: str = "UNKNOWN"
    message: str = ""
    stacktrace: str | None = None


class _Answer(msgspec.Struct, frozen=True):
    type: str = ""
    invocation_id: str | None = None
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: _Error | None = None


def engine_url(project: Project, address: str | None, port: int | None) -> str:
    """Where to call: the running engine's own port, else the one config.yaml names, else 49134.

    ``address`` is a host, or a whole ``ws:`` or ``wss:`` URL. Raises `InvalidValue` for any other URL.
    """
    if address is not None and "://" in address:
        return _complete_url(address, port)
    host, scheme = address or "127.0.0.1", "ws"
    if port is None and host in LOOPBACK:
        record = read_record(project)
        port = record.port if record is not None else _configured_port(project)
        scheme = "wss" if record is not None and record.secure else "ws"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port or DEFAULT_PORT}"


def _complete_url(address: str, port: int | None) -> str:
    """``address`` with a port: its own, else ``port``, else 49134."""
    try:
        parts = urlsplit(address)
        valid, own = parts.scheme in ("ws", "wss") and bool(parts.hostname), parts.port
    except ValueError:  # a port or an IPv6 address that is none
        valid, own, parts = False, None, urlsplit("")
    if not valid:
        raise InvalidValue(
            f"--address {address!r} is not a WebSocket URL", hint="write it like wss://engine.example:443"
        )
    if own is not None and port not in (None, own):
        raise UsageError(f"--port {port} contradicts --address {address!r}")
    if own is not None:
        return address
    return parts._replace(netloc=f"{parts.netloc.removesuffix(':')}:{port or DEFAULT_PORT}").geturl()


def payload(json_text: str | None, pairs: Sequence[str]) -> msgspec.Raw:
    """The payload: ``json_text`` as it is, with the members of ``pairs`` set over it; ``{}`` for nothing at all.

    A pair is split at its first ``=``; its value is JSON where it can be, else text.

    Raises `InvalidValue` for text that is not JSON, and for a base that is no object; `UsageError` for no pair at all.
    """
    if json_text is not None and not _is_json(json_text):
        raise InvalidValue("--json is not valid JSON", hint="quote it for the shell: --json '{\"a\": 1}'")
    if not pairs:
        return msgspec.Raw((json_text or "{}").encode())
    members: dict[str, msgspec.Raw] = {}
    if json_text is not None:
        try:
            members = msgspec.json.decode(json_text, type=dict[str, msgspec.Raw])
        except msgspec.ValidationError:
            raise InvalidValue("KEY=VALUE needs --json to be an object", hint="leave one of the two out") from None
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise UsageError(f"{pair!r} is not KEY=VALUE")
        if not pair.isascii() and any("\ud800" <= letter <= "\udfff" for letter in pair):
            raise InvalidValue(f"the value of {key!r} is not valid UTF-8")
        members[key] = msgspec.Raw((value if _is_json(value) else text(value)).encode())
    return msgspec.Raw(msgspec.json.encode(members))


def text(value: str) -> str:
    """``value`` as JSON text."""
    return msgspec.json.encode(value).decode()


def call(state: State, url: str, function: str, body: msgspec.Raw, timeout: float) -> msgspec.Raw | None:
    """Call ``function`` and give its result as JSON, or None where it has none.

    Raises:
        InvocationError: the call failed; the code is the wire's.
        EngineNotRunning: nothing answers at ``url``.
        EngineError: no answer within ``timeout`` seconds, or the connection ended first.
    """
    record = _transport(state, url)
    folder = state.project.state_dir / "state" / record.name
    context = OpenContext(state_dir=folder, runtime_dir=folder, home=state.project.home, environ=state.project.environ)
    return run_async(partial(_call, record, context, url, function, body, timeout))


def function_ids(state: State, url: str) -> list[str]:
    """The functions that there are; none where the engine does not say, or not soon."""
    try:
        listed = decode(call(state, url, "engine::functions::list", msgspec.Raw(b"{}"), SUGGESTION_TIME))
        return [str(row["function_id"]) for row in listed["functions"]]
    except (IIIError, KeyError, TypeError):
        return []


def pretty(value: msgspec.Raw) -> str:
    """JSON over several lines; numbers keep their digits, and nothing in it moves a terminal's cursor."""
    return _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", msgspec.json.format(bytes(value), indent=2).decode())


def encode(value: Any) -> msgspec.Raw:
    """As JSON."""
    return msgspec.Raw(msgspec.json.encode(value))


def decode(value: msgspec.Raw | None) -> dict[str, Any]:
    """An answer that should be an object; any other is an empty one."""
    found: object = msgspec.json.decode(value) if value is not None else {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


async def _call(
    record: Transport, context: OpenContext, url: str, function: str, body: msgspec.Raw, timeout: float
) -> msgspec.Raw | None:
    with trio.move_on_after(timeout):
        async with record.open(record.config(), context) as transport:
            try:
                peer = await transport.connect(url, limits=Limits(max_message=LARGEST_RESULT))
            except OSError as error:
                raise not_running(url) from error
            try:
                return await invoke(peer, function, body)
            finally:
                with trio.move_on_after(1, shield=True):
                    await peer.close()
    raise EngineError(
        f"no answer from {function!r} within {timeout:g} s", hint="raise --timeout-ms, or look at the worker's logs"
    )


async def invoke(peer: Peer, function: str, body: msgspec.Raw) -> msgspec.Raw | None:
    """One call over an open connection; frames that have nothing to do with it are passed over.

    Raises `InvocationError`, or `EngineError` where the connection ends first.
    """
    invocation_id = str(uuid.uuid4())
    request = {"type": "invokefunction", "invocation_id": invocation_id, "function_id": function, "data": body}
    try:
        await peer.send(Message(data=msgspec.json.encode(request)))
        while True:
            answer = _decode_answer((await peer.receive()).data)
            if answer.type == "error" and answer.error is not None:
                raise InvocationError(answer.error.code, answer.error.message)
            if answer.type == "invocationresult" and answer.invocation_id == invocation_id:
                break
    except (trio.BrokenResourceError, trio.EndOfChannel) as error:
        raise EngineError(
            f"the connection to the engine ended before {function!r} answered",
            hint="the engine's own output says why, if it still runs",
        ) from error
    if answer.error is not None:
        raise InvocationError(answer.error.code, answer.error.message, answer.error.stacktrace)
    return None if bytes(answer.result) == b"null" else answer.result


def not_running(where: str) -> EngineNotRunning:
    """The error for an engine that does not answer."""
    return EngineNotRunning(f"no engine answers at {where}", hint="start it with 'iii' in another terminal")


def _decode_answer(frame: bytes) -> _Answer:
    try:
        return msgspec.json.decode(frame, type=_Answer)
    except (msgspec.DecodeError, RecursionError):
        return _Answer()


def _is_json(value: str) -> bool:
    try:
        msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        return False
    return True


def _configured_port(project: Project) -> int:
    return manager_port(load_config(project), project.environ) if project.config_path.exists() else DEFAULT_PORT


def _transport(state: State, url: str) -> Transport:
    scheme = url.partition(":")[0]
    for record in state.plugins.collect(Transport).values():
        if scheme in record.schemes:
            return record
    raise PluginMissing(f"no installed transport connects to {scheme}: URLs", hint="install iii-plugin-websocket")

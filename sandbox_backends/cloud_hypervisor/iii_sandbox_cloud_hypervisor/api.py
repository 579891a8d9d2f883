"""The VMM's REST API over its Unix socket, as far as it is used here."""

from __future__ import annotations

import re
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx  # noqa: ASYNC127  # should it need a fix one day: its continuation, httpx2, can take its place here
import msgspec
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping
    from pathlib import Path

T = TypeVar("T")
BASE: Final = "http://localhost/api/v1/"
MAX_ANSWER: Final = 1 << 20
MAX_WORDS: Final = 500
CLOSE_SECONDS: Final = 1.0
_UNSAFE: Final = re.compile(r"[^\x21-\x7e]+")
_JSON: Final = "application/json"


class ApiError(Exception):
    """A call failed; ``str()`` says which, and why.

    Attributes:
        status: of the VMM's refusal; None if there was no answer, or none that can be understood.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Pong(msgspec.Struct, frozen=True):
    """``VmmPingResponse``."""

    version: str
    pid: int | None = None


class VmInfo(msgspec.Struct, frozen=True):
    """``VmInfo``."""

    config: dict[str, Any]
    state: str


class Api:
    """One VMM. Every call takes ``seconds`` at most and raises `ApiError`; cancelling one breaks its connection."""

    def __init__(self, transport: httpx.AsyncBaseTransport, seconds: float) -> None:
        self._transport = transport
        self._seconds = seconds

    async def ping(self) -> Pong:
        """Waits until the VMM serves its API."""
        return await self._get("vmm.ping", Pong)

    async def create(self, config: Mapping[str, Any]) -> None:
        """Give the VMM its ``VmConfig``; nothing runs yet."""
        await self._put("vm.create", msgspec.json.encode(config))

    async def info(self) -> VmInfo:
        """The machine, as the VMM understood it."""
        return await self._get("vm.info", VmInfo)

    async def boot(self) -> None:
        """Start the machine."""
        await self._put("vm.boot")

    async def press_power_button(self) -> None:
        """Tell the guest that its power button was pressed."""
        await self._put("vm.power-button")

    async def shutdown_machine(self) -> None:
        """End the machine at once; the VMM stays."""
        await self._put("vm.shutdown")

    async def shutdown(self) -> None:
        """Let the VMM end, which it does after it has answered."""
        await self._put("vmm.shutdown")

    async def _get(self, path: str, kind: type[T]) -> T:
        answer = await self._call("GET", path, {"Accept": _JSON})
        try:
            return msgspec.json.decode(answer, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ApiError(f"{path}: the VMM's answer cannot be understood: {printable(str(error))}") from error

    async def _put(self, path: str, body: bytes = b"") -> None:
        kind = {"Content-Type": _JSON} if body else {}
        await self._call("PUT", path, {**kind, "Content-Length": str(len(body))}, body)

    async def _call(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
        request = httpx.Request(method, BASE + path, headers={"Host": "localhost", **headers}, stream=_Body(body))
        try:
            with trio.fail_after(self._seconds):
                status, answer = await self._exchange(request)
        except trio.TooSlowError:
            raise ApiError(f"{path}: the VMM did not answer within {self._seconds:g} s") from None
        except (httpx.HTTPError, OSError) as error:
            raise ApiError(f"{path}: {printable(str(error)) or type(error).__name__}") from error
        if len(answer) > MAX_ANSWER:
            raise ApiError(f"{path}: the VMM's answer is longer than {MAX_ANSWER} bytes")
        if status // 100 != 2:
            raise ApiError(f"{path}: the VMM answered {status}: {words_of(answer) or 'nothing'}", status)
        return answer

    async def _exchange(self, request: httpx.Request) -> tuple[int, bytes]:
        """Status and answer; of one that is too long, its beginning."""
        answer = bytearray()
        response = await self._transport.handle_async_request(request)
        try:
            with trio.CancelScope() as reading:
                async for piece in response.aiter_raw():
                    answer += piece
                    if len(answer) > MAX_ANSWER:
                        reading.cancel()  # not ``break``, which would leave httpx's generators half way
        finally:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await response.aclose()
        return response.status_code, bytes(answer)


class _Body(httpx.AsyncByteStream):
    """The body of a request. httpx's own is a generator, of which a cancelled call would leave half."""

    def __init__(self, data: bytes) -> None:
        self._pieces = [data] if data else []

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._pieces:
            raise StopAsyncIteration
        return self._pieces.pop()


def words_of(answer: bytes) -> str:
    """What a refusal says: newer VMMs send a JSON list of causes, older ones text."""
    try:
        causes = msgspec.json.decode(answer, type=list[str])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return printable(answer.decode(errors="replace"))
    return printable(": ".join(causes))


def printable(text: str) -> str:
    """``text`` as one short line that is safe to print."""
    return _UNSAFE.sub(" ", text).strip()[:MAX_WORDS]


@asynccontextmanager
async def open_api(path: Path, seconds: float) -> AsyncGenerator[Api]:
    """A client of the VMM whose socket is at ``path``; a call may take ``seconds``.

    Each call has a connection of its own: a broken one spoils no other.
    """
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # else every client would load all certificates of the machine
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncHTTPTransport(uds=str(path), verify=nobody, limits=limits) as transport:
        yield Api(transport, seconds)

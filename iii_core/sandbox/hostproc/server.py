"""Serves the engine's calls on the backends that this process has opened."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from iii_core.errors import IIIError, LinkClosed, UnsupportedOperation, UsageError
from iii_core.sandbox.host import BackendPool
from iii_core.sandbox.host_wire import Call, Cancel, Ended, Open, Ready, Reply, failure_of
from iii_core.sandbox.port import SandboxSpec, Snapshots

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iii_core.records import OpenContext, SandboxBackend
    from iii_core.sandbox.host_wire import MessageSocket
    from iii_core.sandbox.port import SandboxDriver

MAX_CALLS = 1024
_log = logging.getLogger("iii.sandbox.host")


class Server:
    """One engine's calls. ``run`` returns when the engine is gone; the pool's nursery must then be cancelled."""

    def __init__(self, messages: MessageSocket, pool: BackendPool, nursery: trio.Nursery) -> None:
        self._messages = messages
        self._pool = pool
        self._nursery = nursery
        self._calls: dict[int, trio.CancelScope] = {}
        self._pumped: set[str] = set()

    async def run(self) -> None:
        """Answer calls until the connection ends (the lifeline: the engine closed it, or died)."""
        await self._messages.send(Ready(pid=os.getpid()))
        while True:
            try:
                message, descriptors = await self._messages.receive()
            except LinkClosed:
                return
            for descriptor in descriptors:  # the engine sends none
                os.close(descriptor)
            if isinstance(message, Call):
                self._accept(message)
            elif isinstance(message, Cancel) and message.id in self._calls:
                self._calls[message.id].cancel()

    def _accept(self, call: Call) -> None:
        scope = trio.CancelScope()
        if len(self._calls) >= MAX_CALLS:
            scope.cancel()
        self._calls[call.id] = scope
        self._nursery.start_soon(self._answer, call, scope, name=f"{call.backend}.{call.method}")

    async def _answer(self, call: Call, scope: trio.CancelScope) -> None:
        reply = Reply(id=call.id, cancelled=True)
        descriptor: int | None = None
        try:
            with scope:
                result, descriptor = await self._perform(call)
                reply = Reply(id=call.id, result=result)
        except Exception as error:  # the one border where every error becomes an answer
            if not isinstance(error, IIIError):
                _log.exception("%s.%s failed", call.backend, call.method)
            reply = Reply(id=call.id, failure=failure_of(error))
        finally:
            del self._calls[call.id]
        try:
            await self._messages.send(reply, () if descriptor is None else (descriptor,))
        except LinkClosed:
            pass  # `run` sees it too, and ends everything
        finally:
            if descriptor is not None:
                os.close(descriptor)

    async def _perform(self, call: Call) -> tuple[Any, int | None]:
        """The result of a call, and the descriptor that goes with it."""
        if call.method == "ping":
            return None, None
        if call.method == "probe":
            return _plain(await self._pool.probe(call.backend)), None
        driver = await self._pool.driver(call.backend)
        if call.method == "open":
            self._pump_events(call.backend, driver)
            return None, None
        return await _perform_on(driver, call.method, call.params)

    def _pump_events(self, backend: str, driver: SandboxDriver) -> None:
        if backend not in self._pumped:
            self._pumped.add(backend)
            self._nursery.start_soon(self._forward_events, backend, driver)

    async def _forward_events(self, backend: str, driver: SandboxDriver) -> None:
        async for event in driver.events():
            try:
                await self._messages.send(
                    Ended(backend=backend, id=event.id, exit=event.exit, console_tail=event.console_tail)
                )
            except LinkClosed:
                return


async def _perform_on(driver: SandboxDriver, method: str, params: Mapping[str, Any]) -> tuple[Any, int | None]:
    if method == "create":
        await driver.create(decode_spec(params["spec"]))
        return None, None
    sandbox: str = params["id"]
    match method:
        case "start":
            await driver.start(sandbox)
        case "link":
            return None, (await driver.link(sandbox)).detach()
        case "stop":
            await driver.stop(sandbox, grace=params["grace"])
        case "destroy":
            await driver.destroy(sandbox, keep_writable=params["keep_writable"])
        case "state":
            return _plain(await driver.state(sandbox)), None
        case "save":
            await _snapshots(driver).save(sandbox, Path(params["folder"]))
        case "restore":
            await _snapshots(driver).restore(sandbox, Path(params["folder"]))
        case _:
            raise UsageError(f"the sandbox host has no method {method!r}")
    return None, None


def _snapshots(driver: SandboxDriver) -> Snapshots:
    if not isinstance(driver, Snapshots):
        raise UnsupportedOperation("this sandbox backend has no snapshots")
    return driver


def decode_spec(value: Any) -> SandboxSpec:
    """A `SandboxSpec` out of plain data. Raises ``msgspec.ValidationError``."""
    return msgspec.convert(value, SandboxSpec, dec_hook=_decode_path)


def _decode_path(kind: type, value: Any) -> Path:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(f"{kind} cannot cross to the sandbox host")


def _plain(record: Any) -> Any:
    return msgspec.to_builtins(record)


def open_context(message: Open, environ: Mapping[str, str]) -> OpenContext:
    """What backends are given, from the engine's first message."""
    from iii_core.records import OpenContext

    return OpenContext(
        state_dir=Path(message.state_dir),
        runtime_dir=Path(message.runtime_dir),
        home=Path(message.home),
        environ=dict(environ),
    )


async def serve(messages: MessageSocket, backends: Mapping[str, SandboxBackend], environ: Mapping[str, str]) -> None:
    """Be the sandbox host for the engine at the other end, until it is gone; then destroy everything and return."""
    first, _ = await messages.receive()
    if not isinstance(first, Open):
        raise UsageError(f"the first message to the sandbox host was {type(first).__name__}, not Open")
    async with trio.open_nursery() as backend_nursery:
        pool = BackendPool(backend_nursery, backends, open_context(first, environ), first.config)
        async with trio.open_nursery() as call_nursery:
            await Server(messages, pool, call_nursery).run()
            call_nursery.cancel_scope.cancel()
        backend_nursery.cancel_scope.cancel()  # calls are over: now the drivers may close

"""The connections that are made inside a sandbox: each is claimed and served, or held back for a while."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from iii_core.errors import LinkError
from iii_core.sandbox import agent_wire as wire
from iii_core.sandbox.agent_tunnel import Traffic, TunnelStream

if TYPE_CHECKING:
    from iii_core.link.mux import Mux
    from iii_core.sandbox.agent_wire import Connection

MAX_TUNNELS: Final = 200
SETTLE: Final = 1.0
"""Seconds without a new connection after which those that were cut and have not come back are not waited for."""
ServeTunnel: TypeAlias = Callable[[trio.abc.Stream], Awaitable[None]]


class Connections:
    """Those of one link. At most `MAX_TUNNELS` at once: streams are left for processes.

    Further ones wait in the sandbox, for as long as the agent lets them.
    """

    def __init__(self, mux: Mux, serve: ServeTunnel, traffic: Traffic, nursery: trio.Nursery) -> None:
        self._mux = mux
        self._serve = serve
        self.traffic = traffic
        self._nursery = nursery
        self._slots = trio.Semaphore(MAX_TUNNELS)
        self._served: set[trio.CancelScope] = set()
        self._held: list[Connection] | None = None
        self._came = trio.lowlevel.ParkingLot()

    async def announced(self, connection: Connection) -> None:
        """Somebody inside has connected; waits while too many have."""
        await self._slots.acquire()
        if self._held is None:
            self._nursery.start_soon(self._serve_one, connection)
            return
        self._slots.release()
        self._held.append(connection)
        self._came.unpark_all()

    async def hold(self, patience: float) -> None:
        """Cut all, and claim none from now on; returns when as many wait inside as were cut, or seem to.

        So whoever connects again by itself is at the door already: the next link of this sandbox is told of it first
        thing. Waits ``patience`` seconds at most. Idempotent.
        """
        if self._held is None:
            self._held = []
        cut = len(self._served)
        for scope in self._served:
            scope.cancel()
        with trio.move_on_after(patience):
            while len(self._held) < cut:
                with trio.move_on_after(SETTLE if self._held else patience) as quiet:
                    await self._came.park()
                if quiet.cancelled_caught:
                    return

    def let_in(self) -> None:
        """Claim what was held back, and what comes."""
        held, self._held = self._held or [], None
        for connection in held:
            self._nursery.start_soon(self._serve_late, connection)

    async def _serve_late(self, connection: Connection) -> None:
        await self._slots.acquire()
        await self._serve_one(connection)

    async def _serve_one(self, connection: Connection) -> None:
        scope = trio.CancelScope()
        self._served.add(scope)
        try:
            with scope:
                stream = await self._mux.open(wire.encode_tunnel(connection.id))
                async with TunnelStream(stream, connection.port, self.traffic) as tunnel:
                    await self._serve(tunnel)
        except* (LinkError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._served.discard(scope)
            self._slots.release()

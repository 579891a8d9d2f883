"""The front door: who may connect, and who serves a connection that was let in."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from iii_core.engine.admission import CHANNEL_PREFIX, TELEMETRY_PATH, AdmissionRules, admit
from iii_core.engine.policy import AccessDenied
from iii_core.engine.session import Session
from iii_core.engine.tls import server_context
from iii_core.protocol import codes
from iii_core.protocol.codec import encode
from iii_core.protocol.messages import AccessError, ErrorBody
from iii_core.transport.port import Limits, Listener, Message

if TYPE_CHECKING:
    from iii_core.engine.config import ListenerConfig
    from iii_core.engine.core import CoreWorker
    from iii_core.engine.policy import Authenticate
    from iii_core.transport.port import ConnectionRequest, Peer, Rejection

log = logging.getLogger(__name__)

AUTHENTICATION_TIMEOUT: Final = 30.0
POLICY_VIOLATION: Final = 1008
"""RFC 6455 §7.4.1. Unlike a clean close, old SDKs reconnect after it (spec protocol §11 #3)."""


class FrontDoor:
    """Of one engine. Methods may be called concurrently."""

    def __init__(self, core: CoreWorker) -> None:
        self._core = core

    def listener(self, settings: ListenerConfig, authenticate: Authenticate) -> Listener:
        """See `Engine.listener`."""
        rules = AdmissionRules(
            bound_host=settings.host,
            allowed_hosts=settings.allowed_hosts,
            allowed_origins=settings.allowed_origins,
        )

        def decide(request: ConnectionRequest) -> Rejection | None:
            rejection = admit(rules, request)
            if rejection is None and request.path.startswith(CHANNEL_PREFIX):
                rejection = self._core.channels.admit(request)
            return rejection

        async def serve(peer: Peer) -> None:
            try:
                await self._serve(peer, authenticate)
            except Exception:  # a fault of ours on one connection must not end the listener of all
                log.exception("a connection failed")

        return Listener(
            admit=decide,
            serve=serve,
            limits=Limits(handshake_timeout=settings.handshake_timeout),
            tls=server_context(settings.tls) if settings.tls else None,
        )

    async def _serve(self, peer: Peer, authenticate: Authenticate) -> None:
        path = peer.request.path
        if path.startswith(CHANNEL_PREFIX):
            await self._core.channels.serve(peer)
            return
        try:
            with trio.fail_after(AUTHENTICATION_TIMEOUT):
                policy = await authenticate(peer.request)
        except AccessDenied as error:
            await _deny(peer, error.message)
            return
        except Exception:  # a fault of the plugin, which must neither let anybody in nor end the listener
            log.exception("authentication failed")
            await _deny(peer, "authentication failed")
            return
        if path == TELEMETRY_PATH:
            await self._consume_telemetry(peer)
        else:
            await Session(self._core.router, peer, policy, self._core.telemetry).run()

    async def _consume_telemetry(self, peer: Peer) -> None:
        try:
            while True:
                for message in await peer.receive_many():
                    if not message.text:
                        self._core.telemetry(None, message.data)
        except (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            peer.abort()


async def _deny(peer: Peer, message: str) -> None:
    error = AccessError(error=ErrorBody(code=codes.AUTH_ERROR, message=message))
    try:
        with trio.move_on_after(Limits().close_timeout):
            await peer.send(Message(data=encode(error)))
            await peer.close(POLICY_VIOLATION, codes.AUTH_ERROR)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    finally:
        peer.abort()

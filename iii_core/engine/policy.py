"""Access control: one policy object per session, asked wherever a connected worker does or sees something.

The core has the enforcement points only; `Policy` itself allows everything. Rules (spec protocol §6) come from a plugin
that subclasses it and hands instances out through the ``authenticate`` argument of `iii_core.engine.Engine.listener`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from iii_core.errors import IIIError
from iii_core.protocol.messages import RegisterFunction, RegisterTrigger, RegisterTriggerType
from iii_core.transport.port import ConnectionRequest

if TYPE_CHECKING:
    from msgspec import Raw

    from iii_core.engine.functions import Function

Registration = TypeVar("Registration", RegisterFunction, RegisterTrigger, RegisterTriggerType)


class AccessDenied(IIIError):
    """A connection is not let in; the message is sent to the peer (spec protocol §1.3), so keep secrets out of it."""


class Policy:
    """What one session may do. This one allows everything and is what open listeners and in-process workers have.

    The two coroutine-free checks run on the hot path and must be quick and pure. The three ``register_*`` hooks are
    awaited in the connection's read loop: that connection alone waits for them, and sees its frames handled in order.
    """

    def refuse_invocation(self, function_id: str, function: Function | None) -> str | None:
        """Why this session may not call a function, or None; also decides what discovery shows (§6.3, §6.7).

        Asked with the id as the caller sent it, before it is known whether such a function exists.
        """
        del function_id, function
        return None

    def refuse_trigger_type(self, trigger_type: str) -> str | None:
        """Why this session may not bind triggers of a type through ``engine::register_trigger``, or None (§6.7)."""
        del trigger_type
        return None

    @property
    def middleware(self) -> str | None:
        """The function that is called instead of every permitted one outside ``engine::`` (§6.5), or None."""
        return None

    @property
    def context(self) -> Raw | None:
        """What the authentication function put aside for hooks and middleware; JSON, or None for ``{}``."""
        return None

    def expose(self, function_id: str) -> str:
        """A function id that this session names as a trigger's target, as the engine knows it (prefixes, §6.4)."""
        return function_id

    async def register_function(self, message: RegisterFunction) -> RegisterFunction | None:
        """The registration to make, perhaps under another id, or None to refuse it silently (§6.6)."""
        return message

    async def register_trigger(self, message: RegisterTrigger) -> RegisterTrigger | None:
        """The registration to make, or None to refuse it silently (§6.6)."""
        return message

    async def register_trigger_type(self, message: RegisterTriggerType) -> RegisterTriggerType | None:
        """The registration to make, or None to refuse it silently (§6.6)."""
        return message


Authenticate: TypeAlias = Callable[[ConnectionRequest], Awaitable[Policy]]
"""Gives the policy of a new connection (`/` and `/otel`, never channels), or raises `AccessDenied`."""


async def allow_everything(request: ConnectionRequest) -> Policy:
    """The trusted listener: whoever may connect may do everything."""
    del request
    return Policy()

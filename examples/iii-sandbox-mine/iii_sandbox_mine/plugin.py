"""The records of this distribution; what is heavy is imported when it is needed."""

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager

import msgspec

from iii_core import hookimpl
from iii_core.records import OpenContext, ProbeResult, SandboxBackend
from iii_core.sandbox.port import Isolation, SandboxDriver


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What users may set for this backend."""

    tmp_mib: int = 256


@hookimpl
def iii_sandbox_backends() -> Iterator[SandboxBackend]:
    yield SandboxBackend(
        name="mine",
        summary="Namespaces for an ordinary user, from three programs",
        isolation=Isolation.NAMESPACES,
        strength=1,
        capabilities=frozenset(),
        config=Settings,
        probe=probe,
        open=open_mine,
    )


def open_mine(settings: Settings, context: OpenContext) -> AbstractAsyncContextManager[SandboxDriver]:
    from iii_core.sandbox.launching import open_launched
    from iii_sandbox_mine.launcher import MineLauncher

    return open_launched(lambda nursery: MineLauncher(settings.tmp_mib, context, nursery))


async def probe(settings: Settings, context: OpenContext) -> ProbeResult:
    from iii_sandbox_mine.launcher import try_it

    return await try_it(context)

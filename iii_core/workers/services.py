"""What managed workers need from the rest of the program, as one value that is handed down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import trio

    from iii_core.images.port import Image, ProgressSink
    from iii_core.records import SandboxBackend
    from iii_core.sandbox.port import SandboxDriver, SandboxNeeds


class Images(Protocol):
    """Images by source, whichever resolver accepts it."""

    async def fetch(self, source: str, *, refresh: bool, progress: ProgressSink) -> Image:
        """See `iii_core.images.port.ImageResolver.fetch`; raises `PluginMissing` where no resolver accepts it."""
        ...


@dataclass(frozen=True, slots=True)
class OpenBackend:
    """A sandbox backend that works here, its driver, and what people should know of the choice."""

    record: SandboxBackend
    driver: SandboxDriver
    notes: tuple[str, ...] = ()


class Sandboxes(Protocol):
    """Sandbox backends by name, opened when they are first needed."""

    async def backend(self, name: str) -> OpenBackend:
        """The backend called ``name``, or for ``auto`` the strongest that works.

        Raises:
            PluginMissing: there is no backend of that name.
            BackendUnavailable: it does not work here; the hint says what would help.
        """
        ...

    async def check(self, name: str, needs: SandboxNeeds) -> None:
        """Raise `UnsupportedOperation` if that backend lacks what is needed; else as `backend` does."""
        ...


class EngineSide(Protocol):
    """The engine, as a managed worker's sandbox sees it."""

    @property
    def port(self) -> int:
        """The trusted listener's port: what ``III_URL`` names inside sandboxes."""
        ...

    @property
    def tunnel_ports(self) -> Sequence[int]:
        """The ports that agents listen on inside their sandbox."""
        ...

    async def serve_tunnel(self, stream: trio.abc.Stream, sandbox_id: str) -> None:
        """Serve one connection that a worker made inside its sandbox."""
        ...

    async def watch_sandbox(self, sandbox_id: str, report: Callable[[bool], None]) -> None:
        """Report whether a worker from that sandbox is connected, now and at each change, until cancelled."""
        ...


@dataclass(frozen=True, slots=True)
class WorkerServices:
    """Everything a supervisor works with."""

    images: Images
    sandboxes: Sandboxes
    engine: EngineSide

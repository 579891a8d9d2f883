"""The sandbox port: what a sandbox backend must do, and the values it works with.

A backend boots something that runs the guest agent as its init and gives back a byte stream to that agent (the
*link*, ``docs/protocol/agent.md``). Everything that happens inside the sandbox (processes, exec, tunnel) goes over that
link and is the same for all backends. So the port is small, and nothing of the worker (argv, environment, secrets) is
in the spec.

Lifecycle: ``create`` → ``start`` → (``stop`` → ``start``)* → ``destroy``.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path  # msgspec reads these types when a spec crosses to the sandbox host
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from iii_core.errors import UnsupportedOperation

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    import trio


class Isolation(enum.StrEnum):
    """How strong a sandbox is; shown to users and given to workers as ``III_ISOLATION``."""

    MICROVM = "microvm"
    NAMESPACES = "namespaces"
    NONE = "none"


class Capability(enum.StrEnum):
    """Optional abilities of a backend. A declared one is tested, an undeclared one raises `UnsupportedOperation`."""

    CPU_LIMIT = "cpu-limit"
    MEMORY_LIMIT = "memory-limit"
    PID_LIMIT = "pid-limit"
    USER_RANGE = "user-range"  # more than one user id exists inside the sandbox
    DISK_LIMIT = "disk-limit"  # the writable layer has a size of its own
    EGRESS = "egress"  # the outside can be reached, as far as `Egress` allows
    MOUNTS = "mounts"  # folders of this machine can be shown inside
    SNAPSHOT = "snapshot"  # the driver is also a `Snapshots`


@dataclass(frozen=True, slots=True)
class Lack:
    """Why a backend has not on this machine what it could have, and the command that changes that."""

    reason: str
    hint: str


class Phase(enum.StrEnum):
    """Where a sandbox is in its lifecycle."""

    CREATED = "created"
    RUNNING = "running"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Resource limits; None means none.

    ``cpus`` in cores (0.1 … 1024), ``memory_mib`` ≥ 16, ``pids`` ≥ 2, ``disk_mib`` ≥ 16 (the writable layer).
    """

    cpus: float | None = None
    memory_mib: int | None = None
    pids: int | None = None
    disk_mib: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Egress:
    """Leave to reach the outside: public addresses, and of those that are not public only what ``allow`` names.

    Never the machine's own loopback, private, link-local or metadata addresses, whatever a name resolves to.

    Attributes:
        allow: networks in CIDR notation that are reachable although they are not public. An address of the machine
            itself is reachable only where one of them is that address alone.
        nameservers: where the sandbox's DNS queries go; empty means the machine's own resolvers.
    """

    allow: tuple[str, ...] = ()
    nameservers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A folder of this machine, shown inside at ``target`` (absolute, normal); read-only unless ``writable``."""

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RootImage:
    """A read-only file system image: ``format`` is ``squashfs``; ``digest`` is the image manifest's, ``sha256:…``."""

    path: Path
    format: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """What to boot.

    Attributes:
        id: ``[a-z0-9][a-z0-9-]{0,62}``, unique among the host's live sandboxes.
        root: the image; attached read-only, may be shared by many sandboxes.
        writable_dir: this sandbox's own folder for its copy-on-write layer; outlives ``stop``. The backend creates it,
            ``destroy(keep_writable=False)`` deletes it.
        console: file that receives the sandbox's own messages (kernel, launcher, agent), from the first byte.
        hostname: what the sandbox calls itself.
        limits: resources; those the machine cannot enforce are named by ``SandboxState.unenforced``.
        egress: None means that there is no network at all: loopback inside, and the link.
        mounts: folders of this machine.
    """

    id: str
    root: RootImage
    writable_dir: Path
    console: Path
    hostname: str
    limits: Limits = Limits()
    egress: Egress | None = None
    mounts: tuple[Mount, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxState:
    """What a backend knows of one sandbox.

    Attributes:
        phase: lifecycle.
        pid: the launcher's or VMM's process id on this machine while running.
        exit: how the sandbox ended (``"exit 0"``, ``"signal 9"``), once it has.
        unenforced: the limits that this machine cannot enforce, in words for the user.
        notes: other things the user should know (such as a user that could not be mapped).
        single_user: inside there is no user id but 0, whatever user an image names.
        not_saveable: why it cannot be saved, although its backend declares `Capability.SNAPSHOT`; None if it can.
    """

    phase: Phase
    pid: int | None = None
    exit: str | None = None
    unenforced: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    single_user: bool = False
    not_saveable: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxEvent:
    """A sandbox ended without having been asked to. ``console_tail`` is the last 4 KiB of its console as text."""

    id: str
    exit: str
    console_tail: str = ""


class SandboxNeeds(Protocol):
    """What is asked of a backend; `SandboxSpec` is one."""

    @property
    def limits(self) -> Limits:
        """Resources."""
        ...

    @property
    def egress(self) -> Egress | None:
        """Network."""
        ...

    @property
    def mounts(self) -> tuple[Mount, ...]:
        """Folders of this machine."""
        ...


_NO_LACKS: Final[Mapping[Capability, Lack]] = {}


def check_supported(
    spec: SandboxNeeds,
    capabilities: frozenset[Capability],
    backend: str,
    lacks: Mapping[Capability, Lack] = _NO_LACKS,
) -> None:
    """Raise `UnsupportedOperation` for what the spec asks of a backend that does not declare it: never ignore it.

    ``lacks`` has words for what the backend could do elsewhere.

    Limits of CPU, memory and processes are the exception: where they cannot be enforced, `SandboxState.unenforced`
    says so.
    """
    asked = {
        Capability.EGRESS: spec.egress is not None and "network access",
        Capability.MOUNTS: spec.mounts and "mounts",
        Capability.DISK_LIMIT: spec.limits.disk_mib is not None and "a disk size",
    }
    for capability, what in asked.items():
        if what and capability not in capabilities:
            lack = lacks.get(capability)
            raise UnsupportedOperation(
                f"the sandbox backend {backend} does not support {what}" + (f" here: {lack.reason}" if lack else ""),
                hint=lack.hint
                if lack
                else "leave it out of the worker's sandbox settings, or choose a backend that has it",
                details={"backend": backend, "capability": capability.value},
            )


class SandboxDriver(ABC):
    """An opened sandbox backend.

    All methods may be called concurrently for different ids; the driver serialises calls for one id. A cancelled call
    leaves either the state before it or the state after it, and never a process, mount or file that no id owns.
    """

    @abstractmethod
    async def create(self, spec: SandboxSpec) -> None:
        """Claim the id and prepare the disk; boots nothing. Raises `SandboxError` if the id is taken."""

    @abstractmethod
    async def start(self, sandbox_id: str) -> None:
        """Boot. Returns once the byte stream to the agent exists; the agent may still be booting.

        Raises `BootFailed` (with the console's tail), `BackendUnavailable`, `SandboxNotFound`; starting a running
        sandbox is a `SandboxError`.
        """

    @abstractmethod
    async def link(self, sandbox_id: str) -> socket.socket:
        """The connected stream socket to the agent; the caller owns it from now on.

        One taker per boot: a second call raises `SandboxError`.
        """

    @abstractmethod
    async def stop(self, sandbox_id: str, *, grace: float) -> None:
        """Power off: wait ``grace`` seconds for the sandbox to end (its agent was asked over the link), then kill it.

        Idempotent: stopping what is not running does nothing.
        """

    @abstractmethod
    async def destroy(self, sandbox_id: str, *, keep_writable: bool) -> None:
        """Kill if running and forget the id; delete the writable layer unless it is kept. Idempotent."""

    @abstractmethod
    async def state(self, sandbox_id: str) -> SandboxState:
        """Raises `SandboxNotFound`."""

    @abstractmethod
    def events(self) -> trio.MemoryReceiveChannel[SandboxEvent]:
        """The one channel of unasked-for ends; never blocks the driver (on overflow the oldest events are dropped)."""


@runtime_checkable
class Snapshots(Protocol):
    """What a driver with `Capability.SNAPSHOT` can do besides. The same rules of concurrency and cancellation hold."""

    async def save(self, sandbox_id: str, folder: Path) -> None:
        """Save a running sandbox, memory and writable layer, into a folder that does not exist yet; it runs on.

        Its link breaks; `SandboxDriver.link` gives the next one. Raises `SandboxError` if it fails, and then leaves
        no folder; as when it is cancelled, the link may have broken by then: if so, there is a next one.
        """
        ...

    async def restore(self, sandbox_id: str, folder: Path) -> None:
        """As `SandboxDriver.start`, but from a saved state, which stays valid; its writable layer replaces today's.

        The agent must then be told to resume: its clock stands at the time of saving and its random numbers are those
        of every other guest restored from the same state.

        Raises:
            SnapshotUnusable: it is of another image, machine, kernel or version, or damaged.
        """
        ...

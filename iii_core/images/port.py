"""The image port: how workers' images are found, fetched and described, whatever the registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from iii_core.sandbox.port import RootImage


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """What an image says about the process it wants to be (OCI image-spec, ``config`` object)."""

    env: tuple[tuple[str, str], ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = "/"
    user: str = ""
    stop_signal: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHints:
    """``/iii/worker.yaml`` inside the image (spec worker-cli §2.4). ``cpus`` ≥ 1, ``memory_mib`` ≥ 1."""

    name: str | None = None
    version: str | None = None
    description: str | None = None
    cpus: int | None = None
    memory_mib: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageUser:
    """The account of an image that its ``USER`` means, by the image's own ``/etc/passwd`` and ``/etc/group``.

    Ids are 0 … 2³²-2. ``groups`` are supplementary ones; ``home`` is the account's folder, "" where none is known.
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image in the local store, ready to boot.

    Attributes:
        reference: as the user gave it, normalised (``docker.io/library/x:latest``).
        digest: the manifest's digest, ``sha256:<64 hex>``.
        name: the worker name it suggests (last path segment of the repository).
        size: bytes of the root image on disk.
        hints: None where the image holds no (valid) ``/iii/worker.yaml``.
        user: whom ``config.user`` means; None where the image doesn't know that name, or its registry didn't look.
        pin: what ``fetch`` gives this very image for, for ever and on every platform it exists for:
            ``reference@sha256:…``. None where the source cannot promise that, such as a file.
    """

    reference: str
    digest: str
    name: str
    config: ImageConfig
    root: RootImage
    size: int
    hints: ImageHints | None = None
    user: ImageUser | None = None
    pin: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One step of work, for a progress bar or a line of log.

    ``stage`` is ``resolving``, ``downloading``, ``unpacking`` or ``stored``; ``done``/``total`` in bytes where known.
    """

    stage: str
    item: str = ""
    done: int | None = None
    total: int | None = None


ProgressSink: TypeAlias = Callable[[Progress], None]


class ImageResolver(ABC):
    """An opened registry. Methods may be called concurrently, also from two processes on one store."""

    @abstractmethod
    async def fetch(self, source: str, *, refresh: bool, progress: ProgressSink) -> Image:
        """Make the image of ``source`` present in the store and describe it.

        Without ``refresh`` an image that the store knows by this very reference is returned without the network.
        Cancelling leaves the store as it was. Raises the `ImageError` family.
        """

    @abstractmethod
    async def stored(self, source: str) -> Image | None:
        """The image of ``source`` if the store holds it; never uses the network."""

    @abstractmethod
    async def remove(self, source: str) -> int:
        """Forget the reference and delete what no other reference needs. Returns the bytes freed."""

"""What a managed worker is (`WorkerSpec`, from config.yaml) and what is run for it (`WorkerPlan`); both pure values."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from iii_core.errors import redact
from iii_core.sandbox.port import Limits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iii_core.errors import IIIError
    from iii_core.project.sandbox_settings import PublishedPort, UserIds
    from iii_core.sandbox.port import Egress, Mount

AUTO_BACKEND: Final = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """A managed worker as the project declares it; two equal specs need no restart.

    Attributes:
        name: the worker's name in config.yaml.
        source: what a registry resolver accepts, such as an image reference.
        expanded: what config.yaml names as the source, without the pin; ``written`` as it stands there, with variables
            that may be secret. Errors show that (`tell_as_written`).
        env: the flattened ``config:`` block, variables expanded.
        limits: what the entry asks for; None members leave room for the image's hints and the defaults.
        fallback: what the project asks for, where neither entry nor image do.
        backend: a sandbox backend's name, or ``auto``.
        egress: leave to reach the outside; None for no network.
        mounts: folders of this machine that it sees.
        ports: where it can be reached from this machine.
        user: whom it runs as, instead of the image's user.
        problem: why this entry cannot be started, found while reading it.
        declared_at: where its sandbox's settings stand, for error messages.
    """

    name: str
    source: str
    env: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    limits: Limits = Limits()
    fallback: Limits = Limits()
    backend: str = AUTO_BACKEND
    egress: Egress | None = None
    mounts: tuple[Mount, ...] = ()
    ports: tuple[PublishedPort, ...] = ()
    user: UserIds | None = None
    problem: IIIError | None = None
    expanded: str = field(default="", compare=False, repr=False)
    written: str = field(default="", compare=False)
    declared_at: str = field(default="config.yaml", compare=False)

    def tell_as_written(self, error: IIIError) -> None:
        """Name the source in an error as config.yaml does."""
        redact(error, self.expanded, self.written)


def sandbox_id(project: str, name: str) -> str:
    """The sandbox id of a worker: readable, and distinct for distinct (project path, worker name) pairs.

    Worker names may hold ``.``, ``_`` and capitals, sandbox ids may not; two projects may share a worker name.
    """
    digest = hashlib.sha256(f"{project}\0{name}".encode()).hexdigest()[:10]
    readable = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "worker"
    return f"{readable}-{digest}"

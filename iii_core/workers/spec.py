"""What a managed worker is (`WorkerSpec`, from config.yaml) and what is run for it (`WorkerPlan`); both pure values."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from iii_core.sandbox.port import Limits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iii_core.errors import IIIError

AUTO_BACKEND: Final = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """A managed worker as the project declares it; two equal specs need no restart.

    Attributes:
        name: the worker's name in config.yaml.
        source: what a registry resolver accepts, such as an image reference.
        env: the flattened ``config:`` block, variables expanded.
        limits: what the entry asks for; None members leave room for the image's hints and the defaults.
        backend: a sandbox backend's name, or ``auto``.
        problem: why this entry cannot be started, found while reading it.
    """

    name: str
    source: str
    env: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    limits: Limits = Limits()
    backend: str = AUTO_BACKEND
    problem: IIIError | None = None


def sandbox_id(project: str, name: str) -> str:
    """The sandbox id of a worker: readable, and distinct for distinct (project path, worker name) pairs.

    Worker names may hold ``.``, ``_`` and capitals, sandbox ids may not; two projects may share a worker name.
    """
    digest = hashlib.sha256(f"{project}\0{name}".encode()).hexdigest()[:10]
    readable = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "worker"
    return f"{readable}-{digest}"

"""``/iii/worker.yaml`` inside an image (spec worker-cli §2.4)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar, cast

import yaml

from iii_core.images.port import ImageHints
from iii_core.project.quantities import parse_cpus, parse_memory_mib

if TYPE_CHECKING:
    from collections.abc import Callable

_Value = TypeVar("_Value")
MAX_TEXT = 1000
MAX_NESTING = 32


def parse_hints(raw: bytes) -> ImageHints | None:
    """Read the manifest inside an image; None where it is not a valid one ("treated as no manifest").

    A quantity or text that cannot be understood is left out alone. CPUs are rounded up to whole ones.
    """
    try:
        document = yaml.load(raw, Loader=_Loader)  # noqa: S506 (a safe loader, below)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    values = cast("dict[object, Any]", document)
    resources: dict[object, Any] = values["resources"] if isinstance(values.get("resources"), dict) else {}
    cpus = _quantity(parse_cpus, resources.get("cpus"))
    return ImageHints(
        name=_text(values.get("name")),
        version=_text(values.get("version")),
        description=_text(values.get("description")),
        cpus=None if cpus is None else max(1, math.ceil(cpus)),
        memory_mib=_quantity(parse_memory_mib, resources.get("memory")),
    )


class _Loader(yaml.SafeLoader):
    """YAML from a stranger: no aliases (they multiply), no deep nesting."""

    nesting = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        self.nesting += 1
        if self.nesting > MAX_NESTING:
            raise yaml.YAMLError("nested too deeply")
        try:
            return super().compose_node(parent, index)
        finally:
            self.nesting -= 1


def _text(value: object) -> str | None:
    """Shown to users, so only what prints on one line."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)  # `version: 1.0`
    if not isinstance(value, str):
        return None
    text = " ".join(value.split())
    return text[:MAX_TEXT] if text and text.isprintable() else None


def _quantity(read: Callable[[object], _Value], value: object) -> _Value | None:
    if value is None:
        return None
    try:
        return read(value)
    except ValueError:
        return None

"""From settings to a worker's environment and argv (spec worker-cli §2.1, §4). Pure functions.

The precedence of §12.C (image, then config, then what iii sets) is `iii_core.workers.plan`'s.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from iii_core.project.expand import escape

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from iii_core.project.read import Data

SYSTEM_VARIABLES: Final = frozenset({"PATH", "HOME", "HOSTNAME", "LANG", "TERM"})
URL_VARIABLES: Final = ("III_ENGINE_URL", "III_URL")  # in order of precedence (spec worker-cli §4)


def flatten_config(config: Data) -> dict[str, str]:
    """The environment variables of an expanded ``config:`` block (spec worker-cli §2.1).

    Depth first; the path of keys joined by ``_``, upper-cased; text as it is, other scalars and lists as compact JSON.
    The last of two colliding names wins. Anything but a mapping gives nothing.
    """
    found: dict[str, str] = {}
    if isinstance(config, dict):
        _flatten(config, "", found)
    return found


def _flatten(mapping: dict[str, Data], prefix: str, found: dict[str, str]) -> None:
    for key, value in mapping.items():
        name = prefix + key.upper()
        if isinstance(value, dict):
            _flatten(value, name + "_", found)
        elif isinstance(value, str):
            found[name] = value
        else:
            found[name] = json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def config_from_image_env(env: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The ``config:`` block that ``add`` writes for an image: its ``ENV`` less the system's, sorted (spec §4).

    Values are escaped: an image's ``${NAME}`` is text, and must not read the engine's environment.
    """
    return {name: escape(value) for name, value in sorted(env) if name not in SYSTEM_VARIABLES}


def requested_url(env: Mapping[str, str]) -> str | None:
    """The engine URL that image or config ask for, if any."""
    return next((env[name] for name in URL_VARIABLES if env.get(name)), None)


def patch_url_argument(argv: Sequence[str], url: str, *, append: bool) -> tuple[str, ...]:
    """``argv`` with the engine's URL as the value of its first ``--url`` (spec worker-cli §4 RULE).

    ``--url X`` and ``--url=X`` are replaced where they stand, up to a ``--``; a trailing ``--url`` without a value is
    left alone. ``append`` adds ``--url URL`` where there is none, which is done when the URL was asked for.
    """
    patched = list(argv)
    end = patched.index("--") if "--" in patched else len(patched)
    for index, argument in enumerate(patched[:end]):
        if argument.startswith("--url="):
            patched[index] = f"--url={url}"
            return tuple(patched)
        if argument == "--url" and index + 1 < len(patched):
            patched[index + 1] = url
            return tuple(patched)
    return (*patched, "--url", url) if append and "--url" not in patched[:end] else tuple(patched)

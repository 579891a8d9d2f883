"""``policy.json`` of the containers tools (containers-policy.json(5)), for the images that skopeo does not see.

A layout carries no signatures, so its image is accepted exactly where the policy asks for none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iii_core.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iii_registry_oci.reference import LocalReference

_SYSTEM = Path("/etc/containers/policy.json")
_ACCEPT = {"type": "insecureAcceptAnything"}


def find_policy(environ: Mapping[str, str]) -> Path | None:
    """The file that counts: the user's, else this machine's; None where nothing is said, and any image is fine."""
    home = environ.get("HOME")
    mine = [Path(home, ".config/containers/policy.json")] if home else []
    return next((path for path in [*mine, _SYSTEM] if path.exists()), None)


def check_policy(reference: LocalReference, environ: Mapping[str, str]) -> None:
    """Raises `ImageError` unless images of ``reference`` are accepted without a signature."""
    path = find_policy(environ)
    if path is None:
        return
    try:
        wanted = _requirements(json.loads(path.read_bytes()), reference)
        accepted = bool(wanted) and all(item == _ACCEPT for item in wanted)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ImageError(f"{path} cannot be read", hint="see containers-policy.json(5)") from error
    if not accepted:
        raise ImageError(
            f"{reference.canonical}: {path} rejects images from there",
            hint="images of files and folders carry no signature; allow them there, or use a registry",
        )


def _requirements(policy: Any, reference: LocalReference) -> list[Any]:
    """Those of the most specific scope: the path without links, the folders above it but ``/``, the scheme, or all."""
    default: list[Any] = policy["default"]
    scopes: dict[str, list[Any]] = policy.get("transports", {}).get(reference.scheme, {})
    resolved = reference.path.resolve()
    names = [str(folder) for folder in (resolved, *resolved.parents) if folder != folder.parent]
    return next((scopes[name] for name in (*names, "") if name in scopes), default)

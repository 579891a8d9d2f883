"""How backends start small helper programs: Python without the site module, which takes longer than they do."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Final

_BOOTSTRAP: Final = (
    "import importlib, json, sys; sys.path[:0] = json.loads(sys.argv[1]); importlib.import_module(sys.argv[2]).main()"
)


def bare_python(module: str, *arguments: str, packages: tuple[str, ...] = ()) -> list[str]:
    """The command that runs ``main()`` of a module, isolated from the environment and the user's own packages.

    It can import the standard library, `iii_core`, the module's own top-level package and those in ``packages``, all
    from where they are installed here. ``sys.argv`` ends with ``arguments``.
    """
    tops = ("iii_core", module.partition(".")[0], *packages)
    roots = dict.fromkeys(str(Path(importlib.import_module(top).__path__[0]).resolve().parent) for top in tops)
    return [sys.executable, "-I", "-S", "-c", _BOOTSTRAP, json.dumps(list(roots)), module, *arguments]

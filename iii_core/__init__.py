"""iii for Python: an engine that routes calls between workers, and the toolkit around it.

The names below are loaded when they are first used, so that ``import iii_core`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module

# Not out of typing, which takes longer to import than all else that the script does before its first line.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from iii_core.engine import Call as Call
    from iii_core.engine import Engine as Engine
    from iii_core.engine import EngineClient as EngineClient
    from iii_core.engine import EngineConfig as EngineConfig
    from iii_core.engine import ListenerConfig as ListenerConfig
    from iii_core.engine import TriggerBinding as TriggerBinding
    from iii_core.engine import TriggerProvider as TriggerProvider
    from iii_core.engine import open_engine as open_engine
    from iii_core.errors import IIIError as IIIError
    from iii_core.errors import InvocationError as InvocationError
    from iii_core.hookspecs import hookimpl as hookimpl

__version__ = "0.1.0"

_HOME = {
    "Call": "iii_core.engine",
    "Engine": "iii_core.engine",
    "EngineClient": "iii_core.engine",
    "EngineConfig": "iii_core.engine",
    "IIIError": "iii_core.errors",
    "InvocationError": "iii_core.errors",
    "ListenerConfig": "iii_core.engine",
    "TriggerBinding": "iii_core.engine",
    "TriggerProvider": "iii_core.engine",
    "hookimpl": "iii_core.hookspecs",
    "open_engine": "iii_core.engine",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)

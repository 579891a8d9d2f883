"""The engine: routing between workers, discovery, access control points, and the API of in-process workers.

Public names are loaded when they are first used, so that importing the package stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iii_core.engine.config import EngineConfig as EngineConfig
    from iii_core.engine.config import ListenerConfig as ListenerConfig
    from iii_core.engine.config import TlsFiles as TlsFiles
    from iii_core.engine.engine import Engine as Engine
    from iii_core.engine.engine import open_engine as open_engine
    from iii_core.engine.inprocess import Call as Call
    from iii_core.engine.inprocess import EngineClient as EngineClient
    from iii_core.engine.inprocess import TriggerBinding as TriggerBinding
    from iii_core.engine.inprocess import TriggerProvider as TriggerProvider
    from iii_core.engine.observe import WorkerInfo as WorkerInfo
    from iii_core.engine.policy import AccessDenied as AccessDenied
    from iii_core.engine.policy import Policy as Policy

_HOME = {
    "AccessDenied": "policy",
    "Call": "inprocess",
    "Engine": "engine",
    "EngineClient": "inprocess",
    "EngineConfig": "config",
    "ListenerConfig": "config",
    "Policy": "policy",
    "TlsFiles": "config",
    "TriggerBinding": "inprocess",
    "TriggerProvider": "inprocess",
    "WorkerInfo": "observe",
    "open_engine": "engine",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)

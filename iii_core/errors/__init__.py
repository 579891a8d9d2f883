"""Every error a user can meet, as one tree.

::

    IIIError                        W900
    ├── UsageError                  W105  (exit code 2)
    │   ├── InvalidName             W100
    │   └── InvalidValue            W106
    ├── ConsentRequired             W104
    ├── OutputError                 W107
    ├── Cancelled                   W170
    ├── ConfigError                 W131
    │   ├── ConfigIoError           W130
    │   ├── UnknownKey              W132
    │   ├── UnsetVariable           W133
    │   └── LockfileMismatch        W150
    ├── WorkerNotInstalled          W112
    ├── WorkerAlreadyExists         W111
    ├── WorkerNotRunning            W113
    ├── LockBusy                    W120
    ├── StartTimeout                W161
    ├── SpawnError                  W160
    ├── EngineError                 W200
    │   ├── EngineNotRunning        W201
    │   ├── EngineAlreadyRunning    W202
    │   ├── AddressInUse            W203
    │   ├── ControlError            W204
    │   └── TlsError                W205
    ├── PluginError                 W210
    │   ├── PluginCollision         W211
    │   └── PluginMissing           W212
    ├── ImageError                  W141
    │   ├── ImageNotFound           W220
    │   ├── RegistryUnreachable     W221
    │   ├── RegistryAuthError       W222
    │   ├── NoMatchingPlatform      W223
    │   ├── DigestMismatch          W224
    │   ├── ImageUnsafe             W225
    │   ├── StorageFull             W226
    │   └── ImageUserUnknown        W227
    ├── SandboxError                W230
    │   ├── BackendUnavailable      W231
    │   ├── BootFailed              W232
    │   ├── BootTimeout             W233
    │   ├── SandboxDied             W234
    │   ├── SandboxNotFound         W235
    │   ├── UnsupportedOperation    W236
    │   ├── SandboxHostDied         W237
    │   ├── SnapshotUnusable        W238
    │   └── SandboxRefused          W239
    ├── LinkError                   W240
    │   └── LinkClosed              W241
    │       └── LinkSilent          W243
    ├── ProcessSpawnError           W242
    └── InvocationError             (the code of the wire: ``function_not_found`` …)

A ``code`` is stable: scripts may match on it, it is never reused, and ``docs/errors.md`` documents each one.
``hint`` says what to do next. ``details`` is JSON-able data about the case; never put secrets there.
Library code raises these and never exits the process; the CLI maps them to an exit code in one place.
"""

from __future__ import annotations

from iii_core.errors.base import (
    Cancelled,
    ConsentRequired,
    IIIError,
    InvalidName,
    InvalidValue,
    InvocationError,
    OutputError,
    UsageError,
    leading_error,
    redact,
)
from iii_core.errors.engine import (
    AddressInUse,
    ControlError,
    EngineAlreadyRunning,
    EngineError,
    EngineNotRunning,
    PluginCollision,
    PluginError,
    PluginMissing,
    TlsError,
)
from iii_core.errors.images import (
    DigestMismatch,
    ImageError,
    ImageNotFound,
    ImageUnsafe,
    ImageUserUnknown,
    NoMatchingPlatform,
    RegistryAuthError,
    RegistryUnreachable,
    StorageFull,
)
from iii_core.errors.project import (
    ConfigError,
    ConfigIoError,
    LockBusy,
    LockfileMismatch,
    SpawnError,
    StartTimeout,
    UnknownKey,
    UnsetVariable,
    WorkerAlreadyExists,
    WorkerNotInstalled,
    WorkerNotRunning,
)
from iii_core.errors.sandbox import (
    BackendUnavailable,
    BootFailed,
    BootTimeout,
    LinkClosed,
    LinkError,
    LinkSilent,
    ProcessSpawnError,
    SandboxDied,
    SandboxError,
    SandboxHostDied,
    SandboxNotFound,
    SandboxRefused,
    SnapshotUnusable,
    UnsupportedOperation,
)

__all__ = [
    "AddressInUse",
    "BackendUnavailable",
    "BootFailed",
    "BootTimeout",
    "Cancelled",
    "ConfigError",
    "ConfigIoError",
    "ConsentRequired",
    "ControlError",
    "DigestMismatch",
    "EngineAlreadyRunning",
    "EngineError",
    "EngineNotRunning",
    "IIIError",
    "ImageError",
    "ImageNotFound",
    "ImageUnsafe",
    "ImageUserUnknown",
    "InvalidName",
    "InvalidValue",
    "InvocationError",
    "LinkClosed",
    "LinkError",
    "LinkSilent",
    "LockBusy",
    "LockfileMismatch",
    "NoMatchingPlatform",
    "OutputError",
    "PluginCollision",
    "PluginError",
    "PluginMissing",
    "ProcessSpawnError",
    "RegistryAuthError",
    "RegistryUnreachable",
    "SandboxDied",
    "SandboxError",
    "SandboxHostDied",
    "SandboxNotFound",
    "SandboxRefused",
    "SnapshotUnusable",
    "SpawnError",
    "StartTimeout",
    "StorageFull",
    "TlsError",
    "UnknownKey",
    "UnsetVariable",
    "UnsupportedOperation",
    "UsageError",
    "WorkerAlreadyExists",
    "WorkerNotInstalled",
    "WorkerNotRunning",
    "leading_error",
    "redact",
]

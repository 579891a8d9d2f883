"""Every error a user can meet, as one tree.

::

    IIIError                        W900
    ├── UsageError                  W105  (exit code 2)
    │   ├── InvalidName             W100
    │   └── InvalidValue            W106
    ├── ConsentRequired             W104
    ├── Cancelled                   W170
    ├── ConfigError                 W131
    │   ├── ConfigIoError           W130
    │   ├── UnknownKey              W132
    │   └── UnsetVariable           W133
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
    │   └── SnapshotUnusable        W238
    ├── LinkError                   W240
    │   └── LinkClosed              W241
    ├── ProcessSpawnError           W242
    └── InvocationError             (the code of the wire: ``function_not_found`` …)

A ``code`` is stable: scripts may match on it, it is never reused, and ``docs/errors.md`` documents each one.
``hint`` says what to do next. ``details`` is JSON-able data about the case; never put secrets there.
Library code raises these and never exits the process; the CLI maps them to an exit code in one place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class IIIError(Exception):
    """Base of all errors this project raises on purpose.

    Args:
        message: what went wrong and where, one sentence, no trailing full stop needed.
        hint: what the user can do about it, or None.
        details: JSON-able facts (names, paths, limits).
    """

    default_code: ClassVar[str] = "W900"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details: dict[str, Any] = dict(details or {})

    @property
    def code(self) -> str:
        """The stable code of this error."""
        return self.default_code


class UsageError(IIIError):
    """The command or call itself is malformed."""

    default_code = "W105"
    exit_code = 2


class InvalidName(UsageError):
    """A worker name that may not touch the disk (spec worker-cli §0.6)."""

    default_code = "W100"
    exit_code = 1


class InvalidValue(UsageError):
    """A value that is not what its option takes, such as a duration without a unit."""

    default_code = "W106"
    exit_code = 1


class ConsentRequired(IIIError):
    """A destructive operation needs ``-y`` because nobody can be asked."""

    default_code = "W104"


class Cancelled(IIIError):
    """The user declined."""

    default_code = "W170"


class ConfigError(IIIError):
    """A project file that does not say what it should."""

    default_code = "W131"


class ConfigIoError(ConfigError):
    """A project file that cannot be read or written."""

    default_code = "W130"


class UnknownKey(ConfigError):
    """A key nobody reads; the hint names the nearest known one."""

    default_code = "W132"


class UnsetVariable(ConfigError):
    """``${NAME}`` without a default, and NAME is not in the environment."""

    default_code = "W133"


class WorkerNotInstalled(IIIError):
    """The worker is not in config.yaml."""

    default_code = "W112"


class WorkerAlreadyExists(IIIError):
    """The worker is in config.yaml already."""

    default_code = "W111"


class WorkerNotRunning(IIIError):
    """The operation needs a running worker."""

    default_code = "W113"


class LockBusy(IIIError):
    """Another process holds the project lock; ``details["holder_pid"]`` names it."""

    default_code = "W120"


class StartTimeout(IIIError):
    """The worker did not become ready in time."""

    default_code = "W161"


class SpawnError(IIIError):
    """A helper program could not be started."""

    default_code = "W160"


class EngineError(IIIError):
    """The engine cannot do its work."""

    default_code = "W200"


class EngineNotRunning(EngineError):
    """The command needs the project's engine, and none answers."""

    default_code = "W201"


class EngineAlreadyRunning(EngineError):
    """This project has an engine already."""

    default_code = "W202"


class AddressInUse(EngineError):
    """A listener's address is taken."""

    default_code = "W203"


class ControlError(EngineError):
    """The control socket spoke something unexpected."""

    default_code = "W204"


class TlsError(EngineError):
    """A certificate or key that cannot be used, or a peer whose certificate is not to be trusted."""

    default_code = "W205"


class PluginError(IIIError):
    """A plugin breaks the rules of the host."""

    default_code = "W210"


class PluginCollision(PluginError):
    """Two plugins declare the same name."""

    default_code = "W211"


class PluginMissing(PluginError):
    """No installed plugin provides what is asked for."""

    default_code = "W212"


class ImageError(IIIError):
    """An image that cannot be had or used."""

    default_code = "W141"


class ImageNotFound(ImageError):
    """The registry does not know the reference."""

    default_code = "W220"


class RegistryUnreachable(ImageError):
    """The registry does not answer."""

    default_code = "W221"


class RegistryAuthError(ImageError):
    """The registry refuses the credentials, or wants some."""

    default_code = "W222"


class NoMatchingPlatform(ImageError):
    """The image has no variant for this machine."""

    default_code = "W223"


class DigestMismatch(ImageError):
    """Bytes that are not what their digest says."""

    default_code = "W224"


class ImageUnsafe(ImageError):
    """An image whose layers try something they must not."""

    default_code = "W225"


class StorageFull(ImageError):
    """The image store ran out of disk space."""

    default_code = "W226"


class ImageUserUnknown(ImageError):
    """An image that is to run as an account that it does not have."""

    default_code = "W227"


class SandboxError(IIIError):
    """A sandbox operation failed; ``details`` may carry ``backend`` and ``sandbox``."""

    default_code = "W230"


class BackendUnavailable(SandboxError):
    """The sandbox backend cannot work on this machine."""

    default_code = "W231"


class BootFailed(SandboxError):
    """The sandbox ended before its agent answered; ``details["console"]`` holds the console's tail."""

    default_code = "W232"


class BootTimeout(SandboxError):
    """The agent did not answer in time."""

    default_code = "W233"


class SandboxDied(SandboxError):
    """A running sandbox ended by itself."""

    default_code = "W234"


class SandboxNotFound(SandboxError):
    """No sandbox of that id."""

    default_code = "W235"


class UnsupportedOperation(SandboxError):
    """The backend does not declare the capability that the operation needs."""

    default_code = "W236"


class SandboxHostDied(SandboxError):
    """The process that owns the sandboxes ended, and all of them with it."""

    default_code = "W237"


class SnapshotUnusable(SandboxError):
    """A saved state is damaged, or of another image, machine, kernel or version."""

    default_code = "W238"


class LinkError(IIIError):
    """The peer of a framed link broke the protocol."""

    default_code = "W240"


class LinkClosed(LinkError):
    """The framed link is gone."""

    default_code = "W241"


class ProcessSpawnError(IIIError):
    """A program could not be started inside a sandbox.

    ``details["errno"]`` is the guest's errno; ``exit_code_like`` is what a shell would report.
    """

    default_code = "W242"

    @property
    def exit_code_like(self) -> int:
        """127 where the program (or the working directory) does not exist, 126 where it cannot be executed."""
        return 127 if self.details.get("errno") == 2 else 126  # ENOENT


class InvocationError(IIIError):
    """A function call failed; ``code`` is the error code of the wire (spec protocol §1.8).

    Args:
        code: such as ``function_not_found`` or ``invocation_stopped``.
        message: the peer's message.
        stacktrace: the peer's stack trace, if it sent one.
    """

    def __init__(self, code: str, message: str, stacktrace: str | None = None) -> None:
        super().__init__(message)
        self._code = code
        self.stacktrace = stacktrace

    @property
    def code(self) -> str:
        """The error code of the wire."""
        return self._code

    def __str__(self) -> str:
        return f"{self._code}: {self.message}"


def leading_error(error: BaseException) -> BaseException:
    """The error to show for ``error``: in an exception group the first `IIIError` leaf, else the first leaf."""
    leaves = list(_leaves(error))
    return next((leaf for leaf in leaves if isinstance(leaf, IIIError)), leaves[0])


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        yield error
        return
    members: tuple[BaseException, ...] = cast("BaseExceptionGroup[BaseException]", error).exceptions
    for member in members:
        yield from _leaves(member)

"""The base of all errors, those of a command line or a call, and how to choose one out of a group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Self


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

    def copy(self) -> Self:
        """Another one that says the same, whatever its class takes to be made."""
        other = type(self).__new__(type(self), *self.args)
        other.__dict__.update(self.__dict__)
        return other


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


class OutputError(IIIError):
    """What was asked for cannot be written to stdout."""

    default_code = "W107"


class Cancelled(IIIError):
    """The user declined."""

    default_code = "W170"


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


def redact(error: IIIError, secret: str, shown: str) -> None:
    """Put ``shown`` in the place of ``secret`` wherever the error's message, hint and details have it."""
    if secret and secret != shown:
        error.message = error.message.replace(secret, shown)
        error.args = (error.message, *error.args[1:])
        error.hint = error.hint and error.hint.replace(secret, shown)
        error.details = {key: _replaced(value, secret, shown) for key, value in error.details.items()}


def _replaced(value: object, secret: str, shown: str) -> object:
    if isinstance(value, str):
        return value.replace(secret, shown)
    if isinstance(value, dict):
        mapping = cast("dict[object, object]", value)
        return {key: _replaced(item, secret, shown) for key, item in mapping.items()}
    if isinstance(value, (list, tuple)):
        return [_replaced(item, secret, shown) for item in cast("Iterable[object]", value)]
    return value


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

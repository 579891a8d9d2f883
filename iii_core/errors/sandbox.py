"""Errors of sandboxes and of the links to them."""

from __future__ import annotations

from iii_core.errors.base import IIIError


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


class SandboxRefused(SandboxError):
    """What is asked of a sandbox cannot be had by any, or not of this one; trying again does not help."""

    default_code = "W239"


class SnapshotUnusable(SandboxError):
    """A saved state is damaged, or of another image, machine, kernel or version."""

    default_code = "W238"


class LinkError(IIIError):
    """The peer of a framed link broke the protocol."""

    default_code = "W240"


class LinkClosed(LinkError):
    """The framed link is gone."""

    default_code = "W241"


class LinkSilent(LinkClosed):
    """The peer of a framed link has stopped answering."""

    default_code = "W243"


class ProcessSpawnError(IIIError):
    """A program could not be started inside a sandbox.

    ``details["errno"]`` is the guest's errno; ``exit_code_like`` is what a shell would report.
    """

    default_code = "W242"

    @property
    def exit_code_like(self) -> int:
        """127 where the program (or the working directory) does not exist, 126 where it cannot be executed."""
        return 127 if self.details.get("errno") == 2 else 126  # ENOENT

"""Errors of a project, its files and its workers."""

from __future__ import annotations

from iii_core.errors.base import IIIError


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


class LockfileMismatch(ConfigError):
    """iii.lock pins a worker to something else than config.yaml asks for."""

    default_code = "W150"


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

"""What can never work, whatever backend runs a worker: said before anything is written, changed or ended for it.

Asked of a worker's settings when they change, when ``add`` is about to write them, and before each run; and of what an
image adds to them (`iii_core.workers.plan`). Values never appear in errors: they may be secrets.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, urlsplit

from iii_core.errors import ConfigError, SandboxRefused
from iii_core.project.env import requested_url
from iii_core.sandbox.launcher import check_limits
from iii_core.sandbox.mounts import check_mounts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iii_core.sandbox.port import Limits
    from iii_core.workers.spec import WorkerSpec

WELL_KNOWN_PORT: Final = 49134
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
MAX_VARIABLE: Final = 128 * 1024 - 1
"""Bytes of ``NAME=value``; Linux gives a program no longer one (``MAX_ARG_STRLEN``, execve(2))."""
MAX_ENVIRONMENT: Final = 896 * 1024
"""Bytes of all of them: with the program's arguments they are one message to the guest agent, of 1 MiB."""
_OWN_ADDRESSES: Final = ("127.0.0.1", "0.0.0.0")  # noqa: S104  # compared, not bound


def check_spec(spec: WorkerSpec, engine_port: int) -> None:
    """Check what an entry asks for. Looks at the folders that are to be mounted.

    Raises:
        ConfigError: no run could use it.
    """
    check_environment(spec.name, spec.env)
    url = requested_url(spec.env)
    if url is not None:
        check_url(spec.name, url, engine_port)
    for limits in (spec.limits, spec.fallback):
        check_worker_limits(spec, limits)
    _check_ports(spec, engine_port)
    _check_mounts(spec)


def check_environment(worker: str, env: Mapping[str, str]) -> None:
    """Raise `ConfigError` for what is no environment of a process."""
    size = 0
    for name, value in env.items():
        if not name or "=" in name or "\0" in name:
            raise _unfit(worker, f"{name[:64]!r} is no name of an environment variable", "correct its name")
        try:
            length = len(f"{name}={value}".encode())
        except UnicodeEncodeError:
            raise _unfit(worker, f"the value of {name} is not valid UTF-8", "give it another value") from None
        if "\0" in value:
            raise _unfit(worker, f"the value of {name} holds a NUL character", "give it another value")
        if length > MAX_VARIABLE:
            raise _unfit(worker, f"{name} is longer than {MAX_VARIABLE} bytes", "put it into a file")
        size += length
    if size > MAX_ENVIRONMENT:
        raise _unfit(worker, f"its environment is larger than {MAX_ENVIRONMENT} bytes", "put some of it into a file")


def _unfit(worker: str, problem: str, hint: str) -> ConfigError:
    return ConfigError(f"worker {worker!r}: {problem}", hint=f"{hint}: see the worker's 'config' and 'env'")


def check_url(worker: str, url: str, engine_port: int) -> None:
    """Raise `ConfigError` for a URL that leads elsewhere than to the engine, which is at loopback inside."""
    remedy = f"remove III_URL and III_ENGINE_URL from the worker's config, or set them to ws://127.0.0.1:{engine_port}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or WELL_KNOWN_PORT
    except ValueError:  # whose text quotes the URL
        raise ConfigError(f"worker {worker!r}: III_URL is not a URL", hint=remedy) from None
    if parts.scheme not in ("ws", "wss") or host is None:
        raise ConfigError(f"worker {worker!r}: III_URL is not a WebSocket URL", hint=remedy)
    if host not in LOOPBACK or port not in (engine_port, WELL_KNOWN_PORT):
        shown = _origin(parts, host)
        raise ConfigError(
            f"worker {worker!r}: III_URL ({shown}) leads elsewhere than to its engine, which is at 127.0.0.1 inside",
            hint=remedy,
            details={"url": shown},
        )


def _origin(parts: SplitResult, host: str) -> str:
    """The URL without what may be secret: user, password, path and query."""
    where = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{where}" + (f":{parts.port}" if parts.port else "")


def check_worker_limits(spec: WorkerSpec, limits: Limits) -> None:
    """Raise `ConfigError` for limits that no sandbox can have."""
    try:
        check_limits(limits)
    except SandboxRefused as error:
        raise ConfigError(
            f"{spec.declared_at}: worker {spec.name!r}: {error.message}",
            hint=f"{error.hint}; what the worker's 'sandbox' or 'resources' say wins over what its image asks for",
            details=error.details,
        ) from None


def _check_ports(spec: WorkerSpec, engine_port: int) -> None:
    for port in spec.ports:
        if port.guest in (engine_port, WELL_KNOWN_PORT):  # whoever connects there would speak as this worker
            raise ConfigError(
                f"{spec.declared_at}: worker {spec.name!r}: port {port.guest} inside is the engine's "
                "and cannot be published",
                hint="to make the engine reachable, set 'host' of iii-worker-manager",
            )
        if port.host == engine_port and port.address in _OWN_ADDRESSES:
            raise ConfigError(
                f"{spec.declared_at}: worker {spec.name!r}: port {port.host} of this machine is the engine's own",
                hint="choose another host port in the worker's 'ports'",
            )


def _check_mounts(spec: WorkerSpec) -> None:
    where = f"{spec.declared_at}: worker {spec.name!r}"
    for mount in spec.mounts:
        if not os.path.isdir(mount.source):  # noqa: PTH112  # `Path.is_dir` raises where it may not look
            raise ConfigError(
                f"{where}: {mount.source} is to be mounted, and is no folder",
                hint="make it, or correct 'mounts' in the worker's sandbox settings",
            )
    try:
        check_mounts(spec.mounts, ())
    except SandboxRefused as error:
        raise ConfigError(f"{where}: {error.message}", hint=error.hint, details=error.details) from None

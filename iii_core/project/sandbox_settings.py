"""The ``sandbox:`` blocks of config.yaml: what a sandbox may use and reach, for one worker or for all.

Whatever is not understood is an error that names file and line, never ignored. Nothing is asked of the machine but
where symbolic links lead.
"""

from __future__ import annotations

import ipaddress
import posixpath
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from iii_core.project.quantities import parse_cpus, parse_memory_mib
from iii_core.sandbox.port import Egress, Limits, Mount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from iii_core.errors import ConfigError
    from iii_core.project.block import Block
    from iii_core.project.block import Path as Place

COMMON_KEYS: Final = ("backend", "cpus", "memory", "disk", "pids", "network", "mounts", "user")
WORKER_KEYS: Final = (*COMMON_KEYS, "ports")
PROJECT_KEYS: Final = (*COMMON_KEYS, "backends")
MOST_MOUNTS: Final = 32
MOST_PORTS: Final = 32
MAX_ID: Final = 65535
"""Of the users and groups of a sandbox: so many it has, where it has more than one."""
_LEAST_MIB: Final = 16
_MOST_MIB: Final = 1 << 30
_MOST_PIDS: Final = 1 << 22  # PID_MAX_LIMIT, Linux
_KERNEL_FOLDERS: Final = ("/proc", "/sys", "/dev")
_RUNTIME_FOLDERS: Final = ("/run", "/var/run")
_CLOSED: Final = tuple(
    ipaddress.ip_network(text)
    for text in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/127", "fe80::/10", "ff00::/8")
)
"""This machine, link-local (clouds keep their metadata there), multicast and reserved addresses."""
_PORT: Final = re.compile(r"(?:(\[[0-9A-Fa-f:.]+\]|[0-9.]+):)?([0-9]{1,5}):([0-9]{1,5})\Z")
_USER: Final = re.compile(r"([0-9]{1,10})(?::([0-9]{1,10}))?\Z")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What a block says about the network: ``egress`` None is none at all."""

    egress: Egress | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedPort:
    """``address:host`` on this machine is connected to 127.0.0.1:``guest`` in the sandbox."""

    host: int
    guest: int
    address: str = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserIds:
    """Whom the worker's programs run as, instead of the image's ``USER``."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSettings:
    """What one block says; None is nothing. ``line`` is where it begins, 0 where there is none."""

    backend: str | None = None
    limits: Limits = Limits()
    network: Network | None = None
    mounts: tuple[Mount, ...] | None = None
    ports: tuple[PublishedPort, ...] | None = None
    user: UserIds | None = None
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Folders that sources of mounts are read by.

    Attributes:
        project: what relative paths are relative to.
        user_home: what ``~`` is.
        private: what no sandbox may see, nor anything that holds it: it would get power over iii itself.
    """

    project: Path
    user_home: Path | None = None
    private: tuple[Path, ...] = ()


def worker_sandbox(block: Block, environ: Mapping[str, str], places: Places) -> SandboxSettings:
    """The ``sandbox:`` of a worker's entry. Raises `ConfigError` and its kinds."""
    return _Reader(block.expanded(environ), places).settings(WORKER_KEYS)


def project_sandbox(block: Block, environ: Mapping[str, str], places: Places) -> SandboxSettings:
    """The ``sandbox:`` of the whole project; ``backends`` in it is for `iii_core.project.provider_settings`."""
    return _Reader(block.expanded(environ), places).settings(PROJECT_KEYS)


class _Reader:
    def __init__(self, block: Block, places: Places) -> None:
        self._block = block
        self._places = places

    def settings(self, known: tuple[str, ...]) -> SandboxSettings:
        self._block.check_keys((), self._block.data, known)
        return SandboxSettings(
            backend=self._value("backend", _backend),
            limits=Limits(
                cpus=self._value("cpus", _cpus),
                memory_mib=self._value("memory", _mebibytes),
                pids=self._value("pids", _pids),
                disk_mib=self._value("disk", _mebibytes),
            ),
            network=self._value("network", self._network),
            mounts=self._list("mounts", self._mount, MOST_MOUNTS, unique=lambda mount: mount.target),
            ports=self._list("ports", _port, MOST_PORTS, unique=lambda port: (port.address, port.host)),
            user=self._value("user", _user),
            line=self._block.line,
        )

    def _value(self, key: str, parse: Callable[[Any], T]) -> T | None:
        value = self._block.data.get(key)
        return None if value is None else self._parsed((key,), value, parse)

    def _parsed(self, path: Place, value: Any, parse: Callable[[Any], T]) -> T:
        try:
            return parse(value)
        except ValueError as error:
            raise self._wrong(path, str(error)) from None

    def _wrong(self, path: Place, problem: str, hint: str | None = None) -> ConfigError:
        return self._block.error(path, f"{self._block.name(path)}: {problem}", hint=hint)

    def _list(
        self, key: str, parse: Callable[[Any], T], most: int, *, unique: Callable[[T], object]
    ) -> tuple[T, ...] | None:
        given = self._block.data.get(key)
        if given is None:
            return None
        items = _items(given)
        if items is None or len(items) > most:
            raise self._wrong((key,), f"expected a list of at most {most}")
        found: dict[object, T] = {}
        for index, value in enumerate(items):
            parsed = self._parsed((key, index), value, parse)
            if found.setdefault(unique(parsed), parsed) is not parsed:
                raise self._wrong((key, index), f"{unique(parsed)!r} is there twice")
        return tuple(found.values())

    def _network(self, value: Any) -> Network:
        if value == "none":
            return Network()
        if value == "egress":
            return Network(egress=Egress())
        outer = _mapping(value)
        if outer is None:
            raise ValueError("expected 'none', 'egress' or a mapping with 'egress'")
        self._block.check_keys(("network",), outer, ("egress",))
        if "egress" not in outer:
            raise ValueError("expected a mapping with 'egress'")
        allowed = outer["egress"]
        if allowed is None:
            return Network(egress=Egress())
        path = ("network", "egress")
        inner = _mapping(allowed)
        if inner is None:
            raise self._wrong(path, "expected a mapping with 'allow' and 'nameservers'")
        self._block.check_keys(path, inner, ("allow", "nameservers"))
        lists = {key: self._texts((*path, key), inner.get(key)) for key in ("allow", "nameservers")}
        return Network(
            egress=Egress(
                allow=tuple(self._parsed((*path, "allow", i), text, _cidr) for i, text in lists["allow"]),
                nameservers=tuple(
                    self._parsed((*path, "nameservers", i), text, _nameserver) for i, text in lists["nameservers"]
                ),
            )
        )

    def _texts(self, path: Place, value: Any) -> list[tuple[int, str]]:
        items = [] if value is None else _items(value)
        if items is None or not all(isinstance(item, str) for item in items):
            raise self._wrong(path, "expected a list of addresses")
        return list(enumerate(items))

    def _mount(self, value: Any) -> Mount:
        source, target, writable = self._mount_parts(value)
        return Mount(source=self._source(source), target=_target(target), writable=writable)

    def _mount_parts(self, value: Any) -> tuple[str, str, bool]:
        if isinstance(value, str):
            source, _, rest = value.partition(":")
            target, _, mode = rest.partition(":")
            if not source or not target or mode not in ("", "ro", "rw"):
                raise ValueError("expected SOURCE:TARGET, SOURCE:TARGET:rw or a mapping with source and target")
            return source, target, mode == "rw"
        parts = _mapping(value)
        if parts is None:
            raise ValueError("expected SOURCE:TARGET or a mapping with source and target")
        index = next(i for i, item in enumerate(self._block.data["mounts"]) if item is value)
        self._block.check_keys(("mounts", index), parts, ("source", "target", "writable"))
        match parts.get("source"), parts.get("target"), parts.get("writable", False):
            case (str(source), str(target), bool(writable)) if source:
                return source, target, writable
            case _:
                raise ValueError("source and target must be text, writable true or false")

    def _source(self, text: str) -> Path:
        if text == "~" or text.startswith("~/"):
            if self._places.user_home is None:
                raise ValueError("there is no home folder for '~'")
            text = str(self._places.user_home) + text[1:]
        if "\0" in text:
            raise ValueError("a path cannot hold NUL")
        try:
            real = (self._places.project / text).resolve()
        except (OSError, RuntimeError) as error:
            raise ValueError(f"cannot follow {text!r}: {error}") from None
        for folder in (*_KERNEL_FOLDERS, *_RUNTIME_FOLDERS):
            if real.is_relative_to(folder):
                raise ValueError(f"{folder} of this machine cannot be shown to a sandbox")
        for private in self._places.private:
            if real.is_relative_to(private) or private.is_relative_to(real):
                raise ValueError(
                    f"{real} holds, or is part of, {private}, with which a worker could take over iii; "
                    "mount a folder that has nothing to do with it"
                )
        return real


def _mapping(value: Any) -> dict[str, Any] | None:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def _items(value: Any) -> list[Any] | None:
    return list(cast("Iterable[Any]", value)) if isinstance(value, list) else None


def _backend(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("expected the name of a sandbox backend, such as bubblewrap, or auto")
    return value


def _cpus(value: Any) -> float:
    cpus = parse_cpus(value)
    if not 0.1 <= cpus <= 1024:
        raise ValueError("expected 0.1 to 1024 cores")
    return cpus


def _mebibytes(value: Any) -> int:
    mib = parse_memory_mib(value)
    if not _LEAST_MIB <= mib <= _MOST_MIB:
        raise ValueError(f"expected {_LEAST_MIB} to {_MOST_MIB} MiB")
    return mib


def _pids(value: Any) -> int:
    if type(value) is not int or not 2 <= value <= _MOST_PIDS:
        raise ValueError(f"expected a whole number from 2 to {_MOST_PIDS}")
    return value


def _cidr(text: str) -> str:
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a network such as 10.1.0.0/16 ({error})") from None
    if any(closed.version == network.version and closed.overlaps(network) for closed in _CLOSED):
        raise ValueError(f"{text} cannot be allowed: loopback, link-local and multicast stay closed")
    return str(network)


def _nameserver(text: str) -> str:
    address = _ip(text)
    if any(ipaddress.ip_address(address) in closed for closed in _CLOSED):
        raise ValueError(
            f"{text} cannot be asked: loopback, link-local and multicast stay closed "
            "(without nameservers, this machine's own are asked)"
        )
    return address


def _ip(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address") from None


def _target(text: str) -> str:
    if not text.startswith("/") or posixpath.normpath(text) != text or text.startswith("//") or "\0" in text:
        raise ValueError(f"the target {text!r} must be an absolute path without '.', '..' or a slash at its end")
    if text == "/" or any(text == folder or text.startswith(f"{folder}/") for folder in _KERNEL_FOLDERS):
        raise ValueError(f"nothing can be mounted at {text} of a sandbox")
    return text


def _port(value: Any) -> PublishedPort:
    found = _PORT.match(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("expected HOST:GUEST or ADDRESS:HOST:GUEST, such as 8080:80")
    address = _ip(found[1].strip("[]")) if found[1] else "127.0.0.1"
    host, guest = int(found[2]), int(found[3])
    if not (0 < host < 65536 and 0 < guest < 65536):
        raise ValueError("ports are 1 to 65535")
    return PublishedPort(host=host, guest=guest, address=address)


def _user(value: Any) -> UserIds:
    if value == "root":
        return UserIds(uid=0, gid=0)
    found = _USER.match(str(value)) if type(value) in (int, str) else None
    if found is None:
        raise ValueError("expected a user id such as 1000, UID:GID, or root")
    uid, gid = int(found[1]), int(found[2] or found[1])
    if uid > MAX_ID or gid > MAX_ID:
        raise ValueError(f"ids are 0 to {MAX_ID}")
    return UserIds(uid=uid, gid=gid)

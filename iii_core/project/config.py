"""The model of ``config.yaml`` (spec worker-cli §2.1, protocol §8.2): what a project declares, checked, not expanded.

Variables stay as written: `iii_core.project.expand` replaces them per worker, so that one unset variable is the trouble
of one worker and not of the project.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from iii_core.errors import ConfigError, InvalidName, UnknownKey, UnsetVariable
from iii_core.project.block import NO_BLOCK, Block, block_of, suggest
from iii_core.project.names import ENGINE_WORKERS, check_name
from iii_core.project.read import Document, Mapping, Node, Scalar, Sequence, read_document, resolve, to_data

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Mapping as AbstractMapping
    from pathlib import Path

    from iii_core.project.locate import Project

DEFAULT_PORT: Final = 49134
MANAGER: Final = "iii-worker-manager"

# `modules` is the legacy synonym of `workers`; `rootfs` and the grace period are accepted for files of the original.
_TOP_KEYS: Final = (
    "workers",
    "modules",
    "sandbox",
    "rootfs",
    "registries",
    "transports",
    "registration_namespace_grace_ms",
)
_ENTRY_KEYS: Final = ("name", "image", "worker_path", "config", "resources", "env", "sandbox", "namespace")
_RESOURCE_KEYS: Final = ("cpus", "memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What an entry's ``resources:`` asks for: ``cpus`` in cores (> 0), ``memory_mib`` ≥ 1; None is no wish."""

    cpus: float | None = None
    memory_mib: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEntry:
    """One entry of ``workers:``.

    Attributes:
        name: valid as a file name (`check_name`).
        line: where the entry starts in config.yaml, from 1.
        image: an OCI reference, for workers that run from an image.
        worker_path: a folder, for workers that run from source.
        config: the worker's own settings, variables not expanded; None where the key is missing or empty.
        env: further environment variables of a managed worker, variables not expanded.
        sandbox: settings of the sandbox, checked by `iii_core.project.sandbox_settings`.
    """

    name: str
    line: int
    image: str | None = None
    worker_path: str | None = None
    config: AbstractMapping[str, Any] | None = field(default=None, repr=False)
    env: AbstractMapping[str, str] = field(default_factory=dict[str, str], repr=False)
    resources: Resources = Resources()
    sandbox: Block = NO_BLOCK
    namespace: str | None = None

    @property
    def managed(self) -> bool:
        """Whether the entry itself says that iii runs this worker in a sandbox."""
        return self.image is not None or self.worker_path is not None

    @property
    def kind(self) -> str:
        """``oci``, ``local``, ``engine`` (a name the engine answers to) or ``config`` (unknown without an engine)."""
        if self.worker_path is not None:
            return "local"
        if self.image is not None:
            return "oci"
        return "engine" if self.name in ENGINE_WORKERS else "config"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectConfig:
    """A whole config.yaml. ``workers`` in file order, with those of a legacy ``modules:`` list after them."""

    workers: tuple[WorkerEntry, ...] = ()
    sandbox: Block = NO_BLOCK
    rootfs: AbstractMapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    registries: Block = NO_BLOCK
    transports: Block = NO_BLOCK

    def find(self, name: str) -> WorkerEntry | None:
        """The first entry of that name."""
        return next((entry for entry in self.workers if entry.name == name), None)


def load_config(project: Project) -> ProjectConfig:
    """Read the project's config.yaml, and add its default workers where it has any.

    Raises `ConfigIoError` (also if there is no file, and no default workers) or `ConfigError`, with lines.
    """
    defaults = project.default_workers
    if defaults is None:
        return load_config_file(project.config_path)
    config = load_config_file(project.config_path) if project.config_path.exists() else ProjectConfig()
    missing = [name for name in defaults if config.find(name) is None]
    return replace(config, workers=(*config.workers, *(WorkerEntry(name=name, line=0) for name in missing)))


def load_config_file(path: Path) -> ProjectConfig:
    """Like `load_config`, for any file."""
    return parse_config(read_document(path))


def parse_config(document: Document) -> ProjectConfig:
    """Check a parsed file. An empty file is an empty project. Raises `ConfigError` and its kinds."""
    root = document.root
    if root is None:
        return ProjectConfig()
    reader = _Reader(document)
    top = reader.mapping(root, "config.yaml")
    reader.check_keys(top, _TOP_KEYS, "config.yaml")
    entries = [*reader.entries(top.get("workers"), legacy=False), *reader.entries(top.get("modules"), legacy=True)]
    reader.check_duplicates(entries)
    return ProjectConfig(
        workers=tuple(entries),
        sandbox=reader.block(top.get("sandbox"), "sandbox"),
        rootfs=reader.settings(top.get("rootfs"), "rootfs"),
        registries=reader.block(top.get("registries"), "registries"),
        transports=reader.block(top.get("transports"), "transports"),
    )


def manager_port(config: ProjectConfig, environ: AbstractMapping[str, str]) -> int:
    """The port of the first ``iii-worker-manager`` entry that gives a usable one, else 49134 (spec worker-cli §0.4)."""
    from iii_core.project.expand import expand

    manager = config.find(MANAGER)
    port = (manager.config or {}).get("port") if manager is not None else None
    try:
        port = expand(port, environ, owner=f"worker {MANAGER!r}")
    except UnsetVariable:
        return DEFAULT_PORT
    return port if isinstance(port, int) and 0 < port < 65536 else DEFAULT_PORT


class _Reader:
    """Turns nodes into the model; every complaint names the line."""

    def __init__(self, document: Document) -> None:
        self._document = document

    def entries(self, node: Node | None, *, legacy: bool) -> list[WorkerEntry]:
        if node is None or _is_null(node):
            return []
        node = resolve(node)
        if not isinstance(node, Sequence):
            raise self._wrong(node, "modules" if legacy else "workers", "a list of workers")
        return [self._entry(resolve(item), item.line, legacy=legacy) for item in node.items]

    def _entry(self, node: Node, line: int, *, legacy: bool) -> WorkerEntry:
        if isinstance(node, Scalar):
            raise self._document.error(
                line, "a worker must be a mapping with a name", hint=f"write '- name: {_shown(node)}'"
            )
        item = self.mapping(node, "a worker")
        id_key = "class" if legacy and item.get("name") is None else "name"
        self.check_keys(item, (*_ENTRY_KEYS, "class") if legacy else _ENTRY_KEYS, "a worker")
        name = self.text(item.get(id_key), id_key)
        if not name:
            raise self._document.error(line, f"a worker needs a {id_key!r}")
        where = f"of worker {name!r}"
        return WorkerEntry(
            name=self._name(name, line, legacy=legacy),
            line=line,
            image=self.text(item.get("image"), f"'image' {where}"),
            worker_path=self.text(item.get("worker_path"), f"'worker_path' {where}"),
            config=self.settings(item.get("config"), f"'config' {where}") or None,
            env=self.environment(item.get("env"), f"'env' {where}"),
            resources=self.resources(item.get("resources"), f"'resources' {where}"),
            sandbox=self.block(item.get("sandbox"), f"'sandbox' {where}"),
            namespace=self.text(item.get("namespace"), f"'namespace' {where}"),
        )

    def _name(self, name: str, line: int, *, legacy: bool) -> str:
        if legacy:  # class paths such as modules::api::RestApiModule never become file names
            return name
        try:
            return check_name(name)
        except InvalidName as error:
            raise self._document.error(line, error.message, hint=error.hint) from None

    def check_duplicates(self, entries: Iterable[WorkerEntry]) -> None:
        first: dict[str, WorkerEntry] = {}
        for entry in entries:
            other = first.setdefault(entry.name, entry)
            if other is not entry and (other.managed or entry.managed):
                raise self._document.error(
                    entry.line,
                    f"worker {entry.name!r} is here already, on line {other.line}",
                    hint="rename one of them",
                )

    def check_keys(self, node: Mapping, known: tuple[str, ...], where: str) -> None:
        for key, _ in node.pairs:
            if key.text not in known:
                raise self._document.error(
                    key.line, f"unknown key {key.text!r} in {where}", hint=suggest(key.text, known), kind=UnknownKey
                )
        for merged in node.merged:
            self.check_keys(merged, known, where)

    def mapping(self, node: Node, where: str) -> Mapping:
        node = resolve(node)
        if not isinstance(node, Mapping):
            raise self._wrong(node, where, "a mapping")
        return node

    def settings(self, node: Node | None, where: str) -> dict[str, Any]:
        if node is None or _is_null(node):
            return {}
        data: dict[str, Any] = to_data(self.mapping(node, where))
        return data

    def block(self, node: Node | None, where: str) -> Block:
        if node is None or _is_null(node):
            return NO_BLOCK
        return block_of(self._document, self.mapping(node, where), where)

    def text(self, node: Node | None, where: str) -> str | None:
        if node is None or _is_null(node):
            return None
        node = resolve(node)
        value = to_data(node) if isinstance(node, Scalar) else None
        if isinstance(node, Scalar) and not isinstance(value, bool):
            return node.text  # a version such as 1.10 stays what was written
        raise self._wrong(node, where, "text")

    def environment(self, node: Node | None, where: str) -> dict[str, str]:
        if node is None or _is_null(node):
            return {}
        found: dict[str, str] = {}
        for mapping in reversed([self.mapping(node, where), *self.mapping(node, where).merged]):
            for key, item in mapping.pairs:
                value = resolve(item)
                if not isinstance(value, Scalar):
                    raise self._wrong(value, f"{key.text!r} in {where}", "text or a number")
                found[key.text] = value.text
        return found

    def resources(self, node: Node | None, where: str) -> Resources:
        if node is None or _is_null(node):
            return Resources()
        from iii_core.project.quantities import parse_cpus, parse_memory_mib

        mapping = self.mapping(node, where)
        self.check_keys(mapping, _RESOURCE_KEYS, where)
        cpus = self._quantity(mapping.get("cpus"), parse_cpus, f"'cpus' in {where}")
        memory = self._quantity(mapping.get("memory"), parse_memory_mib, f"'memory' in {where}")
        return Resources(cpus=cpus, memory_mib=None if memory is None else int(memory))

    def _quantity(self, node: Node | None, parse: Callable[[object], float], where: str) -> float | None:
        if node is None or _is_null(node):
            return None
        try:
            return parse(to_data(node))
        except ValueError as error:
            raise self._document.error(node.line, f"{where}: {error}") from None

    def _wrong(self, node: Node, where: str, expected: str) -> ConfigError:
        data = to_data(node)
        found = "nothing" if data is None else str(data)
        for kind, name in ((dict, "a mapping"), (list, "a list"), (str, "text")):
            if isinstance(data, kind):
                found = name
        return self._document.error(node.line, f"{where} must be {expected}, not {found}")


def _is_null(node: Node) -> bool:
    node = resolve(node)
    return isinstance(node, Scalar) and to_data(node) is None


def _shown(node: Scalar) -> str:
    return node.text if node.text.isprintable() and len(node.text) < 60 else "…"

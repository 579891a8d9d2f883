"""Reading YAML that people and strangers write: strict, bounded, with line numbers.

One loop over the events of libyaml builds a tree of nodes that know where they stand, for error messages and for
`iii_core.project.edit`. Nothing here recurses over what a file says before its depth is known to be small, and no
constructor of PyYAML runs: tags are refused, duplicate keys are errors, and what aliases expand to is counted.

Plain scalars follow the YAML 1.2 core schema as the original engine's reader does, and not PyYAML's 1.1: ``yes``,
``off``, ``12:30``, ``2024-01-01`` and ``0123`` are text. (docs/adr/0005)
"""

from __future__ import annotations

import errno
import os
import re
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import yaml

from iii_core.errors import ConfigError, ConfigIoError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_BYTES: Final = 1024 * 1024
MAX_DEPTH: Final = 64
MAX_NODES: Final = 50_000

YAML_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BOM: Final = "\ufeff"
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,39})\Z")
_OCTAL = re.compile(r"0o[0-7]{1,40}\Z")
_HEX = re.compile(r"0x[0-9a-fA-F]{1,40}\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_CONSTANTS: Final[dict[str, Any]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


@dataclass(slots=True, eq=False)
class Scalar:
    """``start`` and ``end`` are character offsets of the node itself, without comments; lines count from 1."""

    start: int
    end: int
    line: int
    text: str
    plain: bool
    size: int = 1
    depth: int = 1


@dataclass(slots=True, eq=False)
class Sequence:
    """A list; ``flow`` tells ``[a, b]`` from lines with dashes."""

    start: int
    end: int
    line: int
    flow: bool
    items: list[Node] = field(default_factory=list["Node"])
    size: int = 1
    depth: int = 1


@dataclass(slots=True, eq=False)
class Mapping:
    """A mapping in file order; ``pairs`` excludes merge keys (``<<``), whose mappings are in ``merged``."""

    start: int
    end: int
    line: int
    flow: bool
    pairs: list[tuple[Scalar, Node]] = field(default_factory=list[tuple[Scalar, "Node"]])
    merged: list[Mapping] = field(default_factory=list["Mapping"])
    size: int = 1
    depth: int = 1

    def pair(self, key: str) -> tuple[Scalar, Node] | None:
        """The pair whose key is ``key``, looking through aliases of the value; merged mappings are not searched."""
        return next(((k, v) for k, v in self.pairs if k.text == key), None)

    def get(self, key: str) -> Node | None:
        """The node of ``key``, with aliases resolved, here or in a merged mapping."""
        found = self.pair(key)
        if found is not None:
            return resolve(found[1])
        return next((node for mapping in self.merged if (node := mapping.get(key)) is not None), None)


@dataclass(slots=True, eq=False)
class Alias:
    """``*name``; ``target`` is never an alias itself."""

    start: int
    end: int
    line: int
    target: Scalar | Sequence | Mapping
    size: int
    depth: int


Data: TypeAlias = "bool | int | float | str | list[Data] | dict[str, Data] | None"
Node: TypeAlias = Scalar | Sequence | Mapping | Alias


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file: ``text`` without a byte order mark, ``root`` None where there is nothing but comments.

    ``name`` is what errors call the file.
    """

    name: str
    text: str
    root: Scalar | Sequence | Mapping | None
    bom: bool = False

    def error(
        self, line: int, message: str, *, hint: str | None = None, kind: type[ConfigError] = ConfigError
    ) -> ConfigError:
        """A `ConfigError` that says where: ``config.yaml:12: …``; without a ``hint`` that says more, to correct it."""
        return kind(
            f"{self.name}:{line}: {message}",
            hint=hint or f"correct line {line} of {self.name}",
            details={"path": self.name, "line": line},
        )


def read_document(path: Path, *, name: str | None = None) -> Document:
    """Read and parse a YAML file of at most `MAX_BYTES`. Raises `ConfigIoError` or `ConfigError`; quotes no content."""
    name = name or path.name
    try:
        # Not to hang where somebody has put a FIFO in its place
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigIoError(
            f"cannot read {path}: {error.strerror or type(error).__name__}", details={"path": str(path)}
        ) from error
    return parse_document(data, name=name)


def parse_document(data: bytes | str, *, name: str) -> Document:
    """Parse YAML text (UTF-8, one document). Raises `ConfigError`, with the line where there is one."""
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{name} is larger than {MAX_BYTES // 1024} KiB", details={"path": name})
    if isinstance(data, bytes):
        try:
            data = data.decode("utf-8")
        except UnicodeDecodeError as error:
            line = error.object.count(b"\n", 0, error.start) + 1
            raise ConfigError(f"{name}:{line}: not valid UTF-8", hint="save the file as UTF-8") from None
    bom = data.startswith(_BOM)
    text = data[1:] if bom else data
    document = Document(name, text, None, bom)
    return Document(name, text, _Builder(document).build(), bom)


def resolve(node: Node) -> Scalar | Sequence | Mapping:
    """The node itself, or what an alias stands for."""
    return node.target if isinstance(node, Alias) else node


def resolve_plain(text: str) -> Any:
    """The value of a plain scalar in the YAML 1.2 core schema: None, bool, int, float or the text itself.

    Numbers with leading zeros are text, and so are integers of more than 40 digits.
    """
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.match(text):
        return int(text)
    if _OCTAL.match(text):
        return int(text, 8)
    if _HEX.match(text):
        return int(text, 16)
    if _FLOAT.match(text) and not text.lstrip("+-").isdigit():
        return float(text)
    return text


def to_data(node: Node | None) -> Any:
    """Plain data of a node: dicts (text keys, file order), lists and scalars; aliases become copies."""
    node = resolve(node) if node is not None else None
    if node is None:
        return None
    if isinstance(node, Scalar):
        return resolve_plain(node.text) if node.plain else node.text
    if isinstance(node, Sequence):
        return [to_data(item) for item in node.items]
    data = {key.text: to_data(value) for key, value in node.pairs}
    for mapping in node.merged:
        for key, value in to_data(mapping).items():
            data.setdefault(key, value)
    return data


class _Builder:
    """Turns the event stream into nodes, with a stack instead of recursion."""

    def __init__(self, document: Document) -> None:
        self._document = document
        self._anchors: dict[str, Scalar | Sequence | Mapping] = {}
        self._open: list[Sequence | Mapping] = []
        self._keys: list[Scalar | None] = []
        self._seen: list[dict[str, int]] = []
        self._count = 0
        self._documents = 0
        self._root: Scalar | Sequence | Mapping | None = None

    def build(self) -> Scalar | Sequence | Mapping | None:
        try:
            for event in self._events():
                self._take(event)
        except yaml.YAMLError as error:
            raise self._syntax_error(error) from None
        root = self._root
        if root is not None and (root.size > MAX_NODES or root.depth > MAX_DEPTH):
            raise self._too_big(root.line)
        empty = isinstance(root, Scalar) and root.plain and root.text == ""
        return None if empty else root

    def _events(self) -> Iterator[Any]:
        return iter(yaml.parse(self._document.text, Loader=YAML_LOADER))

    def _take(self, event: Any) -> None:
        line = event.start_mark.line + 1
        if isinstance(event, yaml.DocumentStartEvent):
            self._documents += 1
            if self._documents > 1:
                raise self._document.error(
                    line, "a second YAML document starts here", hint="keep one document per file"
                )
        elif isinstance(event, yaml.AliasEvent):
            self._add(self._alias(event, line))
        elif isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)):
            self._start(event, line)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._finish(event)

    def _start(self, event: Any, line: int) -> None:
        if event.tag is not None:
            raise self._document.error(line, "YAML tags are not supported", hint="quote the value to make it text")
        start, end = event.start_mark.index, event.end_mark.index
        node: Scalar | Sequence | Mapping
        if isinstance(event, yaml.ScalarEvent):
            node = Scalar(start, self._trim(event, start, end), line, event.value, event.implicit[0])
        elif isinstance(event, yaml.SequenceStartEvent):
            node = Sequence(start, end, line, bool(event.flow_style))
        else:
            node = Mapping(start, end, line, bool(event.flow_style))
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        if isinstance(node, Scalar):
            self._add(node)
            return
        if len(self._open) >= MAX_DEPTH:
            raise self._too_big(line)
        self._open.append(node)
        self._keys.append(None)
        self._seen.append({})

    def _trim(self, event: Any, start: int, end: int) -> int:
        """The end of a scalar; a block scalar's blank lines after it are not its own unless it keeps them (``|+``)."""
        if event.style not in ("|", ">"):
            return end
        body = self._document.text[start:end]
        if "+" in body.splitlines()[0].split("#")[0]:
            return end
        return start + len(body.rstrip())

    def _alias(self, event: Any, line: int) -> Alias:
        target = self._anchors.get(event.anchor)
        if target is None:
            raise self._document.error(line, f"alias *{event.anchor} has no anchor")
        if any(target is node for node in self._open):
            raise self._document.error(line, f"alias *{event.anchor} contains itself")
        return Alias(event.start_mark.index, event.end_mark.index, line, target, target.size, target.depth)

    def _finish(self, event: Any) -> None:
        node = self._open.pop()
        self._keys.pop()
        self._seen.pop()
        children = node.items if isinstance(node, Sequence) else [value for _, value in node.pairs]
        if node.flow:
            node.end = event.end_mark.index
        elif isinstance(node, Mapping):
            # A merge key may be the last pair, and `merged` keeps no position: `_pair` has moved `end` along.
            node.end = max([node.end, *(child.end for child in children)])
        elif children:
            node.end = children[-1].end
        inner = [*children, *(node.merged if isinstance(node, Mapping) else [])]
        node.size = 1 + len(children) + sum(child.size for child in inner)
        node.depth = 1 + max((child.depth for child in inner), default=0)
        if node.size > MAX_NODES or node.depth > MAX_DEPTH:
            raise self._too_big(node.line)
        self._add(node)

    def _add(self, node: Node) -> None:
        self._count += 1
        if self._count > MAX_NODES:
            raise self._too_big(node.line)
        if not self._open:
            self._root = resolve(node)
            return
        parent = self._open[-1]
        if isinstance(parent, Sequence):
            parent.items.append(node)
        elif self._keys[-1] is None:
            self._keys[-1] = self._key(node)
        else:
            self._pair(parent, self._keys[-1], node)
            self._keys[-1] = None

    def _key(self, node: Node) -> Scalar:
        if not isinstance(node, Scalar):
            raise self._document.error(node.line, "a key must be plain text")
        seen = self._seen[-1]
        if node.text in seen and not _is_merge(node):
            raise self._document.error(
                node.line, f"key {node.text!r} is here already, on line {seen[node.text]}", hint="remove one of them"
            )
        seen[node.text] = node.line
        return node

    def _pair(self, parent: Mapping, key: Scalar, value: Node) -> None:
        parent.end = max(parent.end, value.end)
        if not _is_merge(key):
            parent.pairs.append((key, value))
            return
        target = resolve(value)
        sources = [resolve(item) for item in target.items] if isinstance(target, Sequence) else [target]
        for source in sources:
            if not isinstance(source, Mapping):
                raise self._document.error(key.line, "'<<' merges mappings only")
            parent.merged.append(source)

    def _too_big(self, line: int) -> ConfigError:
        return self._document.error(
            line, f"nested deeper than {MAX_DEPTH} levels, or more than {MAX_NODES} values once aliases are expanded"
        )

    def _syntax_error(self, error: yaml.YAMLError) -> ConfigError:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not valid YAML"
        if mark is None:
            return ConfigError(f"{self._document.name}: {problem}", details={"path": self._document.name})
        lines = self._document.text.splitlines()
        line = int(mark.line)
        around = lines[line] if line < len(lines) else ""
        hint = "look at that line and the one before: brackets, quotes, colons, indentation"
        if "${" in around:
            hint = 'quote ${…} inside braces and brackets: "${NAME}"'
        elif around[: len(around) - len(around.lstrip())].count("\t"):
            hint = "YAML is indented with spaces, not with tabs"
        return self._document.error(line + 1, f"not valid YAML: {problem}", hint=hint)


def _is_merge(key: Scalar) -> bool:
    return key.plain and key.text == "<<"

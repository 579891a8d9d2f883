"""A part of a config file that others check: plain data, and the line of every value in it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from iii_core.errors import ConfigError, UnknownKey
from iii_core.project.read import Mapping, Scalar, Sequence, resolve, to_data

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Mapping as AbstractMapping

    from iii_core.project.read import Document, Node

Path: TypeAlias = "tuple[str | int, ...]"


@dataclass(frozen=True, slots=True)
class Block:
    """Two blocks are equal if their data is, wherever it stands.

    Attributes:
        where: what people call it, such as ``sandbox of worker 'thumbs'``.
        data: as written, or with its variables replaced (`expanded`).
        file: what errors call the file.
        line: where it begins, from 1; 0 for a block that is not there.
        lines: lines by the path of keys and list positions below the block; a key's line is that of the key.
    """

    where: str = field(default="", compare=False)
    data: AbstractMapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    file: str = field(default="config.yaml", compare=False)
    line: int = field(default=0, compare=False)
    lines: AbstractMapping[Path, int] = field(default_factory=dict["Path", int], compare=False, repr=False)

    def expanded(self, environ: AbstractMapping[str, str]) -> Block:
        """The block with its variables replaced. Raises `UnsetVariable`."""
        from iii_core.project.expand import expand

        return replace(self, data=expand(dict(self.data), environ, owner=f"{self.file}:{self.line}: {self.where}"))

    def error(
        self, path: Path, message: str, *, hint: str | None = None, kind: type[ConfigError] = ConfigError
    ) -> ConfigError:
        """An error about the value at ``path``, or the nearest above it of which the line is known."""
        line = next(
            (self.lines[path[:size]] for size in range(len(path), 0, -1) if path[:size] in self.lines), self.line
        )
        return kind(
            f"{self.file}:{line}: {message}",
            hint=hint or f"correct line {line} of {self.file}",
            details={"path": self.file, "line": line},
        )

    def check_keys(self, path: Path, data: AbstractMapping[str, Any], known: Iterable[str]) -> None:
        """Raise `UnknownKey` for a key of ``data``, which is at ``path``, that nobody reads."""
        known = list(known)
        for key in data:
            if key not in known:
                raise self.error(
                    (*path, key), f"unknown key {key!r} in {self.name(path)}", hint=suggest(key, known), kind=UnknownKey
                )

    def name(self, path: Path) -> str:
        """What people call the value at ``path``."""
        if not path:
            return self.where
        text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
        return f"{text!r} in {self.where}"


NO_BLOCK: Final = Block()


def block_of(document: Document, node: Node, where: str) -> Block:
    """The block that a mapping of a file is."""
    lines: dict[Path, int] = {}
    _note_lines(node, (), lines)
    return Block(where, to_data(node), document.name, node.line, lines)


def suggest(key: str, known: Iterable[str]) -> str:
    """A hint for a key that is not among the known ones."""
    from difflib import get_close_matches

    known = list(known)
    near = get_close_matches(key, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known) or 'none'}"


def _note_lines(node: Node, path: Path, lines: dict[Path, int]) -> None:
    """Depth and size are bounded by the reader (`iii_core.project.read.MAX_DEPTH`)."""
    node = resolve(node)
    if isinstance(node, Sequence):
        for index, item in enumerate(node.items):
            lines[(*path, index)] = item.line
            _note_lines(item, (*path, index), lines)
    elif isinstance(node, Mapping):
        for merged in node.merged:
            _note_lines(merged, path, lines)
        for key, value in node.pairs:
            lines[(*path, _text(key))] = key.line
            _note_lines(value, (*path, _text(key)), lines)


def _text(key: Scalar) -> str:
    return key.text

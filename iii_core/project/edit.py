"""Editing config.yaml without touching what is not edited.

Every edit is a splice of the text at positions the parser reports, so comments, order, quoting, flow style,
indentation, line endings and a missing final newline survive byte for byte outside the edited entry. The parser is the
one that reads (`iii_core.project.read`), so that what was checked is what is edited. The result is parsed again and
compared with the data it should hold: an edit that would do anything else is refused. (docs/adr/0005)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from iii_core.errors import ConfigError, WorkerNotInstalled
from iii_core.project import splice
from iii_core.project.config import parse_config
from iii_core.project.files import write_atomic
from iii_core.project.guard import DEFAULT_WAIT, project_lock
from iii_core.project.lock import load_lock, save_lock
from iii_core.project.read import Document, Mapping, Scalar, Sequence, parse_document, read_document, resolve, to_data
from iii_core.suggestions import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from collections.abc import Mapping as AbstractMapping
    from pathlib import Path

    from iii_core.project.locate import Project
    from iii_core.project.lock import Lock
    from iii_core.project.read import Node

_WORKERS: Final = "workers"
_SOURCES: Final = ("image", "worker_path")
_MAX_STEPS: Final = 1000


@dataclass(frozen=True, slots=True)
class Edited:
    """The new text, what happened to the entry, and whether iii.lock is another one now."""

    text: str
    action: Literal["added", "updated", "unchanged", "removed"]
    lock_changed: bool = False


def put_worker(text: str, entry: AbstractMapping[str, Any], *, name: str = "config.yaml") -> Edited:
    """Add an entry at the end of ``workers:``, or bring the first one of that name up to date.

    An entry that is there already keeps what the user wrote: ``image`` and ``worker_path`` are replaced, everything
    else (``config`` above all) is only added where it is absent, deep inside mappings too.

    Args:
        entry: plain data with a ``name``.
        name: what errors call the file.

    Raises `ConfigError` if the file is not valid, or written in a way that cannot be edited safely.
    """
    document = _check(text, name)
    found = _find(document, str(entry["name"]))
    if found is None:
        changed = _append(document, entry)
        if not _holds(document, changed, _appended(document, entry)):
            raise _refuse(document, document.text.count("\n") + 1)
        return Edited(changed, "added")
    section, index = found
    old = _entries(document, section)[index]
    new = _merge(to_data(old), entry)
    if new == to_data(old):
        return Edited(text, "unchanged")
    expected: Any = to_data(document.root)
    expected[section][index] = new
    for attempt in (_update, _rewrite):
        updated = attempt(document, section, index, new)
        if updated is not None and _holds(document, updated, expected):
            return Edited(updated, "updated")
    raise _refuse(document, old.line)


def remove_worker(text: str, worker: str, *, name: str = "config.yaml") -> Edited:
    """Remove the first entry of that name; the last one leaves ``workers: []``.

    Raises `WorkerNotInstalled`, or `ConfigError` as `put_worker` does (also where another entry needs an anchor of it).
    """
    document = _check(text, name)
    found = _find(document, worker)
    if found is None:
        raise not_in_config(worker, [name for name, _, _ in _named(document)])
    section, index = found
    expected: Any = to_data(document.root)
    del expected[section][index]
    for changed in splice.remove_item(document.text, _block(document, section), index):
        if _holds(document, changed, expected):
            return Edited(changed, "removed")
    raise _refuse(document, _entries(document, section)[index].line)


def edit_config(
    project: Project,
    edit: Callable[[str], Edited],
    *,
    pin: Callable[[Lock], Lock] | None = None,
    wait: float = DEFAULT_WAIT,
) -> Edited:
    """Read config.yaml, apply ``edit`` and write the result atomically, all under the project lock.

    A missing file counts as empty and is created. ``pin`` makes the new iii.lock of the old one; if that cannot be
    written, config.yaml is as it was. Blocks for the lock up to ``wait`` seconds (see `project_lock`).
    Raises what ``edit`` raises, `LockBusy`, `ConfigError` and `ConfigIoError`; the files are then unchanged.
    """
    with project_lock(project, wait=wait):
        path = project.config_path
        document = read_document(path) if path.exists() else None
        old_lock = load_lock(project) if pin else None
        edited = edit(document.text if document else "")
        bom = "\ufeff" if document and document.bom else ""
        if edited.action != "unchanged":
            write_atomic(path, (bom + edited.text).encode(), shrinking=edited.action == "removed")
        if pin is None or old_lock is None:
            return edited
        try:
            changed = _save_lock(project, old_lock, pin(old_lock))
        except ConfigError:
            if edited.action != "unchanged":
                _restore(path, bom + document.text if document else None)
            raise
        return replace(edited, lock_changed=changed)


def _save_lock(project: Project, old: Lock, new: Lock) -> bool:
    if new == old:
        return False
    save_lock(project, new, shrinking=len(new.workers) < len(old.workers))
    return True


def _restore(path: Path, text: str | None) -> None:
    if text is None:
        path.unlink()
    else:
        write_atomic(path, text.encode())


def not_in_config(worker: str, known: Iterable[str]) -> WorkerNotInstalled:
    """The error for a worker that config.yaml does not name; ``known`` are those that it does."""
    return WorkerNotInstalled(
        f"worker {worker!r} is not in config.yaml",
        hint=did_you_mean(worker, known)
        or "see the known ones with 'iii worker list', or add it with 'iii worker add'",
        details={"name": worker},
    )


def _check(text: str, name: str) -> Document:
    document = parse_document(text, name=name)
    parse_config(document)
    return document


def _find(document: Document, worker: str) -> tuple[str, int] | None:
    return next(((section, index) for name, section, index in _named(document) if name == worker), None)


def _named(document: Document) -> Iterator[tuple[str, str, int]]:
    """Name, section and position of each entry."""
    for section in (_WORKERS, "modules"):
        for index, node in enumerate(_entries(document, section)):
            item = resolve(node)
            if isinstance(item, Mapping):
                yield str(to_data(item.get("name")) or to_data(item.get("class"))), section, index


def _entries(document: Document, section: str) -> list[Node]:
    root = document.root
    node = root.get(section) if isinstance(root, Mapping) else None
    return node.items if isinstance(node, Sequence) else []


def _block(document: Document, section: str) -> Sequence:
    """The list of a section, which must be written right there."""
    root = document.root
    assert isinstance(root, Mapping)
    pair = root.pair(section)
    if pair is None or not isinstance(pair[1], Sequence):
        raise _refuse(document, root.line)
    return pair[1]


def _append(document: Document, entry: AbstractMapping[str, Any]) -> str:
    text, root = document.text, document.root
    if root is None:
        return splice.append_to_empty(text, {_WORKERS: [dict(entry)]})
    assert isinstance(root, Mapping)
    pair = root.pair(_WORKERS)
    if pair is None:
        return splice.insert_pair(text, root, _WORKERS, [dict(entry)])
    key, value = pair
    if isinstance(value, Sequence):
        return splice.append_item(text, key, value, entry)
    if isinstance(value, Scalar):
        return splice.fill_empty(text, key, value, entry)
    raise _refuse(document, value.line)


def _appended(document: Document, entry: AbstractMapping[str, Any]) -> Any:
    expected: Any = to_data(document.root) or {}
    expected[_WORKERS] = [*(expected.get(_WORKERS) or []), dict(entry)]
    return expected


def _merge(old: Any, new: Any, *, top: bool = True) -> dict[str, Any]:
    """``new`` under ``old``: the user's values win, except for where the worker comes from."""
    merged: dict[str, Any] = dict(old)
    if top and any(source in new for source in _SOURCES):
        for source in _SOURCES:
            merged.pop(source, None)
            if source in old and source in new:
                merged[source] = new[source]
    for key, value in new.items():
        if merged.get(key) is None:
            merged[key] = value
        elif isinstance(value, dict) and isinstance(merged[key], dict):
            merged[key] = _merge(merged[key], value, top=False)
    return merged


def _update(document: Document, section: str, index: int, new: AbstractMapping[str, Any]) -> str | None:
    """The smallest change that makes entry ``index`` hold ``new``, or None where there is no small one."""
    text = document.text
    for _ in range(_MAX_STEPS):
        try:
            node = _entries(parse_document(text, name=document.name), section)[index]
        except ConfigError:
            return None
        if not isinstance(node, Mapping):
            return None
        changed = _step(text, node, new)
        if changed is None or changed == text:
            return changed
        text = changed
    return None


def _step(text: str, node: Mapping, new: Any) -> str | None:
    """One splice towards ``new``: the same text when nothing is left to do, None where it takes more than a splice."""
    for key, value in node.pairs:
        if key.text not in new:
            return splice.remove_pair(text, node, key, value)
        wanted, present = new[key.text], to_data(value)
        if present == wanted:
            continue
        if isinstance(value, Mapping) and isinstance(wanted, dict) and not value.merged:
            return _step(text, value, wanted)
        if isinstance(value, Scalar) and isinstance(wanted, str) and value.start < value.end:
            return splice.replace_scalar(text, value, wanted)
        return None
    present_keys = {key.text for key, _ in node.pairs}
    for key_text, wanted in new.items():
        if key_text not in present_keys and not node.merged:
            return splice.insert_pair(text, node, key_text, wanted)
    return text


def _rewrite(document: Document, section: str, index: int, new: AbstractMapping[str, Any]) -> str | None:
    """The entry written anew, comments inside it lost: for entries that cannot be changed piece by piece."""
    try:
        return splice.replace_item(document.text, _block(document, section), index, new)
    except ConfigError:
        return None


def _holds(document: Document, changed: str, expected: Any) -> bool:
    try:
        return bool(to_data(_check(changed, document.name).root) == expected)
    except ConfigError:
        return False


def _refuse(document: Document, line: int) -> ConfigError:
    return document.error(
        line, "this file is written in a way that cannot be edited safely", hint="make the change by hand"
    )

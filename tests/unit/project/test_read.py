"""Strict, bounded reading of YAML."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from iii_core.errors import ConfigError, ConfigIoError
from iii_core.project.read import MAX_BYTES, parse_document, read_document, resolve_plain, to_data

BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 20))
MERGE_BOMB = "a0: &a0 {k: x}\n" + "".join(
    f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(10))}}}\n" for i in range(1, 20)
)


def data(text: str | bytes) -> Any:
    return to_data(parse_document(text, name="f.yaml").root)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing", None),
        ("---\n...\n", None),
        ("a: 1", {"a": 1}),
        ("\ufeffa: 1", {"a": 1}),
        ("a: [1, -2, 0x1F, 0o17, 1.5, .5, 1e3, -.inf]", {"a": [1, -2, 31, 15, 1.5, 0.5, 1000.0, float("-inf")]}),
        ("a: [true, False, null, ~, ]", {"a": [True, False, None, None]}),
        ("a: [yes, no, on, off, y, 12:30, 2024-01-01, 0123, 1_000, 0b1]", None),
        ("a: '1'\nb: \"true\"\nc: |\n  1\n", {"a": "1", "b": "true", "c": "1\n"}),
        ("1: a\ntrue: b\n~: c", {"1": "a", "true": "b", "~": "c"}),
        ("a: &x {k: 1}\nb: *x", {"a": {"k": 1}, "b": {"k": 1}}),
        ("a: &x {k: 1, l: 2}\nb:\n  <<: *x\n  k: 3", {"a": {"k": 1, "l": 2}, "b": {"k": 3, "l": 2}}),
        ("a: &x {k: 1}\nc: &y {k: 2, m: 3}\nb: {<<: [*x, *y]}",
         {"a": {"k": 1}, "c": {"k": 2, "m": 3}, "b": {"k": 1, "m": 3}}),
        ("'<<': literal", {"<<": "literal"}),
        ("? a\n: b", {"a": "b"}),
        ("a: &x 1\nb: &x 2\nc: *x", {"a": 1, "b": 2, "c": 2}),
    ],
)  # fmt: skip
def test_values(text: str, value: Any) -> None:
    if value is None and text.startswith("a:"):
        value = {"a": ["yes", "no", "on", "off", "y", "12:30", "2024-01-01", "0123", "1_000", "0b1"]}
    assert data(text) == value


def test_aliases_share_nothing() -> None:
    found = data("a: &x {k: [1]}\nb: *x")
    found["a"]["k"].append(2)
    assert found["b"] == {"k": [1]}


def test_numbers_that_are_text() -> None:
    for text in ("007", "+", "-", ".", "1.2.3", "1e", "0x", "9" * 41, "0777", "1 2"):
        assert resolve_plain(text) == text
    assert resolve_plain("9" * 40) == int("9" * 40)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3: key 'a' is here already, on line 1"),
        ("x:\n  - {k: 1, 'k': 2}\n", "f.yaml:2: key 'k' is here already, on line 2"),
        ("a: !!str 1", "f.yaml:1: YAML tags are not supported"),
        ("a: !!python/object/apply:os.system [id]", "f.yaml:1: YAML tags are not supported"),
        ("- !custom {a: 1}", "f.yaml:1: YAML tags are not supported"),
        ("a:\n  b: *nope", "f.yaml:2: alias *nope has no anchor"),
        ("a: &a [*a]", "f.yaml:1: alias *a contains itself"),
        ("a: &a {b: {c: *a}}", "f.yaml:1: alias *a contains itself"),
        ("? [a]\n: b", "f.yaml:1: a key must be plain text"),
        ("{a: b}: c", "f.yaml:1: a key must be plain text"),
        ("a: {<<: 1}", "f.yaml:1: '<<' merges mappings only"),
        ("a: 1\n---\nb: 2", "f.yaml:2: a second YAML document starts here"),
        ("a: 1\n\tb: 2", "f.yaml:2: not valid YAML"),
        ("a: b: c", "f.yaml:1: not valid YAML"),
        ("a: [1,\nb: 2", "f.yaml:"),
        ("a: 'open", "f.yaml:"),
        ("a: \x07", "f.yaml"),
        (b"ok: 1\nbad: \xff\n", "f.yaml:2: not valid UTF-8"),
        ("[" * 100, "f.yaml:1: nested deeper than 64"),
        ("- " * 100 + "x", "f.yaml:1: nested deeper than 64"),
        ("{a: " * 100, "f.yaml:1: nested deeper than 64"),
        (BOMB, "f.yaml:"),
        (MERGE_BOMB, "f.yaml:"),
        ("- x\n" * 50_001, "or more than 50000 values"),
        ("#" + "x" * MAX_BYTES, "f.yaml is larger than 1024 KiB"),
    ],
)  # fmt: skip
def test_refusals(text: str | bytes, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_document(text, name="f.yaml")
    assert message in caught.value.message
    assert caught.value.code == "W131"


@pytest.mark.parametrize("text", [BOMB, MERGE_BOMB, "[" * 1_000_000, "- " * 500_000, "a: &a [*a]", "? " * 300_000])
def test_hostile_files_cost_little(text: str) -> None:
    tracemalloc.start()
    begun = time.process_time()
    with pytest.raises(ConfigError):
        parse_document(text, name="f.yaml")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - begun < 5
    assert peak < 64 << 20


def test_an_unquoted_variable_in_braces_has_a_hint() -> None:
    with pytest.raises(ConfigError) as caught:
        data("a: {port: ${PORT}}")
    assert caught.value.hint == 'quote ${…} inside braces and brackets: "${NAME}"'


def test_errors_quote_no_content(tmp_path: Path) -> None:
    canary = "s3cr3t-canary"
    for text in (f"key: '{canary}", f"a: {canary}: b", f"a: !!x {canary}", f"- {canary}\n\x01", f"\t{canary}"):
        with pytest.raises(ConfigError) as caught:
            parse_document(text, name="f.yaml")
        assert canary not in f"{caught.value} {caught.value.hint} {caught.value.details}"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(ConfigIoError) as caught:
            read_document(path)
        assert str(path) in caught.value.message

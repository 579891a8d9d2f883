"""Editing config.yaml: what is not edited survives byte for byte, whatever the file looks like."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from iii_core.errors import ConfigError, UnknownKey, WorkerNotInstalled
from iii_core.project.edit import put_worker, remove_worker
from iii_core.project.read import parse_document, to_data

NEW = {"name": "zz-new", "image": "ghcr.io/o/w:1", "config": {"LOG": "debug", "n": {"yes": "no", "v": "1.10"}}}

CORPUS = {
    "seed": "workers:\n  - name: image-resize\n    image: ghcr.io/iii-hq/image-resize:1.0.0\n",
    "flow": "workers: [{name: x}]\n",
    "flow in flow": "{workers: [{name: x}, {name: y}], sandbox: {backend: auto}}",
    "flow over lines": "workers: [\n  {name: x}, # one\n  {name: y}  # two\n]\n",
    "flow with trailing comma": "workers: [\n  {name: x},\n  {name: y},   # two\n  # end\n]\n",
    "flow with late comma": "workers: [\n  {name: x} # one\n  , {name: y}\n  ]",
    "flow of pairs": "workers: [name: x, name: y]\n",
    "quoted names": '"workers":\n  - \'name\': "x"\n  - "name": \'y\'\n',
    "name not first": (
        "workers:\n  - image: a/b:1\n    config:\n      K: v\n    name: x\n  - config: {}\n    name: y\n"
    ),
    "no indentation": (
        "workers:\n- name: x\n- name: y\n  config:\n    a:\n    - 1\n    - 2\nsandbox:\n  backend: auto\n"
    ),
    "deep indentation": "workers:\n      -   name: x\n          config:\n            K: v\n      -   name: y\n",
    "dash alone": "workers:\n  -\n    name: x\n  - # why\n    name: y\n",
    "anchors": (
        "sandbox: &s {backend: auto}\nworkers: &w\n  - &a\n    name: x\n    sandbox: *s\n  - name: y\n    sandbox: *s\n"
    ),
    "merge": (
        "workers:\n  - &x\n    name: x\n    config: &c {K: v}\n  - name: y\n    config:\n      <<: *c\n      L: w\n"
    ),
    "crlf": "# hi\r\nworkers:\r\n  - name: x\r\n    # inside\r\n  - name: y\r\n\r\n# bye\r\n",
    "old mac": "workers:\r  - name: x\r  - name: y\r",
    "tabs in comments": "workers:\t# \ttabs\n  - name: x\t# \tmore\n  - name: y\n",
    "no final newline": "workers:\n  - name: x\n  - name: y",
    "comment without newline": "workers:\n  - name: x # last",
    "comments after": "workers:\n  - name: x\n    config:\n      A: 1\n      # B: 2\n  # - name: off\n# bye\n\n\n",
    "trailing spaces": "workers:   \n  - name: x   \n    image: a/b:1  \n   \n  - name: y\n  \n",
    "block scalars": (
        "workers:\n  - name: x\n    config:\n      S: |\n        a\n\n        b\n\n  - name: y\n"
        "    config:\n      S: >-\n        folded\n        text\n"
    ),
    "kept block scalar": (
        "workers:\n  - name: x\n    config:\n      S: |+\n        a\n\n\n  - name: y\n    config:\n"
        "      S: |+\n        z\n\n"
    ),
    "document markers": "%YAML 1.2\n---\nworkers:\n  - name: x\n...\n# after\n",
    "other keys around": "rootfs: {mode: overlay}\nworkers:\n  - name: x\n\nsandbox:\n  backend: auto\n",
    "unicode": "# köttur 🐈\nworkers:\n  - name: x # naïve\n    config: {MSG: 'ça va 🐈'}\n  - name: y\n",
    "engine twice": "workers:\n  - name: iii-worker-manager\n  - name: iii-worker-manager\n    config: {port: 1}\n",
    "multi-line flow entry": "workers:\n  - {name: x,\n     config: {a: 1,\n       b: 2}}\n  - name: y\n",
    "multi-line plain": "workers:\n  - name: x\n    config:\n      S: one\n        two\n\n        three\n  - name: y\n",
    "explicit key": "? workers\n:\n  - name: x\n",
    "empty value at the end": "workers:\n  - name: x\n    config:\n  - name: y\n    config:   # nothing\n",
    "null then comment": "workers:\n  - name: x\n    config:\n    # only a comment\n# bye",
}
EMPTY = {
    "empty list": "workers: []\n",
    "empty list with comment": "# top\nworkers: [] # none yet\n# bye\n",
    "empty list without newline": "workers: []",
    "spaced empty list": "workers:  [ ]  \nsandbox: {backend: auto}\n",
    "crlf empty list": "# c\r\nworkers: []\r\n",
    "commented-out entries": "workers: []\n  # - name: example\n# end\n",
}
NOTHING = {
    "empty file": "",
    "only comments": "# nothing\n# here",
    "only blank": "\n\n",
    "document start": "---\n",
    "document start and end": "---\n...\n",
    "no list": "workers:\n",
    "no list with comments": "workers: # soon\n  # - name: example\nsandbox: {backend: auto}\n",
    "null": "workers: null # none\n",
    "tilde": "sandbox: {}\nworkers: ~",
    "no key": "sandbox:\n  backend: auto\n# end",
    "empty flow root": "{}\n",
    "flow root": "{sandbox: {backend: auto}}",
    "flow root without list": "{workers: , sandbox: {}}",
    "flow root with empty list": "{workers: [], sandbox: {}}",
}


def data(text: str) -> Any:
    return to_data(parse_document(text, name="config.yaml").root)


def names(text: str) -> list[str]:
    return [str(entry["name"]) for entry in (data(text) or {}).get("workers") or []]


def outside(before: str, after: str) -> tuple[str, str]:
    """What one splice took from ``before`` and what it put there in ``after``."""
    start = 0
    while start < min(len(before), len(after)) and before[start] == after[start]:
        start += 1
    end = 0
    while end < min(len(before), len(after)) - start and before[-1 - end] == after[-1 - end]:
        end += 1
    return before[start : len(before) - end], after[start : len(after) - end]


def check_append(text: str) -> str:
    after = put_worker(text, NEW)
    assert after.action == "added"
    expected = data(text) or {}
    expected["workers"] = [*(expected.get("workers") or []), NEW]
    assert data(after.text) == expected
    taken, put = outside(text, after.text)
    assert taken == ""
    assert "zz-new" in put
    assert ("\r\n" in after.text) == ("\r\n" in text)
    assert after.text.endswith(("\n", "\r")) == text.endswith(("\n", "\r")) or "{" in text or not text
    return after.text


@pytest.mark.parametrize("text", CORPUS.values(), ids=CORPUS.keys())
def test_append_inserts_and_remove_takes_it_out_again(text: str) -> None:
    if text.startswith("workers: [\n  {name: x}, # one\n") or "late comma" in text:
        after = put_worker(text, NEW).text  # the comma and the item go to two places
        assert "# two" in after
    else:
        after = check_append(text)
    assert remove_worker(after, "zz-new").action == "removed"
    if "\n]" not in text:
        assert remove_worker(after, "zz-new").text == text


@pytest.mark.parametrize("text", CORPUS.values(), ids=CORPUS.keys())
def test_remove_takes_one_piece_out(text: str) -> None:
    for name in dict.fromkeys(names(text)):
        try:
            after = remove_worker(text, name).text
        except ConfigError:
            assert "&c" in text  # y needs an anchor that x holds
            assert name == "x"
            continue
        left = list(names(text))
        left.remove(name)
        assert names(after) == left
        taken, put = outside(text, after if left else after.replace(" []", "", 1))
        assert put in ("", "[]")
        assert name in taken or "iii-worker-manager" in name
        for other in left:
            if other != name:
                assert f"name: {other}" not in taken


@pytest.mark.parametrize("text", EMPTY.values(), ids=EMPTY.keys())
def test_an_empty_list_becomes_a_block_list(text: str) -> None:
    after = put_worker(text, NEW).text
    assert data(after)["workers"] == [NEW]
    assert "- name: zz-new" in after
    assert "[" not in after.replace("[]", "?") or "?" not in after
    for comment in ("# top", "# none yet", "# bye", "# end", "# - name: example", "# c"):
        assert (comment in text) == (comment in after)
    assert ("\r\n" in after) == ("\r\n" in text)
    assert data(remove_worker(after, "zz-new").text) == data(text)


@pytest.mark.parametrize("text", NOTHING.values(), ids=NOTHING.keys())
def test_a_missing_list_is_made(text: str) -> None:
    after = put_worker(text, NEW).text
    assert data(after) == {**(data(text) or {}), "workers": [NEW]}
    for line in text.splitlines():
        if line.startswith("#"):
            assert line in after


def test_layout_of_a_new_entry() -> None:
    assert put_worker("workers: []\n", {"name": "x", "image": "a/b:1", "config": {"K": "v", "N": "8080"}}).text == (
        "workers:\n  - name: x\n    image: a/b:1\n    config:\n      K: v\n      N: '8080'\n"
    )


def test_a_new_entry_takes_the_indentation_of_its_neighbours() -> None:
    after = put_worker("workers:\n   -   name: x\n", {"name": "y", "image": "a/b:1"}).text
    assert after == "workers:\n   -   name: x\n   -   name: y\n       image: a/b:1\n"


class TestUpdate:
    def test_user_values_win_and_comments_stay(self) -> None:
        text = (
            "workers:\n  - name: x   # mine\n    image: a/b:1 # pinned\n    config:\n"
            "      LOG: debug   # loud\n      deep: {a: 1}\n      # end of config\n  - name: y\n"
        )
        entry = {
            "name": "x",
            "image": "a/b:2",
            "config": {"LOG": "info", "NEW": "1", "deep": {"a": 2, "b": 3}},
            "resources": {"cpus": 2},
        }
        edited = put_worker(text, entry)
        assert edited.action == "updated"
        assert edited.text == (
            "workers:\n  - name: x   # mine\n    image: a/b:2 # pinned\n    config:\n"
            "      LOG: debug   # loud\n      deep: {a: 1, b: 3}\n      # end of config\n      NEW: '1'\n"
            "    resources:\n      cpus: 2\n  - name: y\n"
        )

    def test_nothing_to_do_changes_nothing(self) -> None:
        text = "workers:\n  - {name: x, image: 'a/b:1', config: {K: v}}\n"
        edited = put_worker(text, {"name": "x", "image": "a/b:1", "config": {"K": "other"}})
        assert (edited.action, edited.text) == ("unchanged", text)

    def test_another_kind_of_source_replaces_the_old_one(self) -> None:
        text = "workers:\n  - name: x\n    worker_path: /w  # local\n    config: {K: v}\n"
        edited = put_worker(text, {"name": "x", "image": "a/b:1"})
        assert data(edited.text)["workers"] == [{"name": "x", "image": "a/b:1", "config": {"K": "v"}}]

    def test_a_source_on_the_dash_line(self) -> None:
        text = "workers:\n  - worker_path: /w\n    name: x\n  - name: y # c\n"
        edited = put_worker(text, {"name": "x", "image": "a/b:1"})
        assert edited.text == "workers:\n  - name: x\n    image: a/b:1\n  - name: y # c\n"

    def test_an_empty_config_is_filled(self) -> None:
        text = "# top\nworkers:\n  - name: x\n    config:\n  - name: y\n# end"
        edited = put_worker(text, {"name": "x", "config": {"K": "v"}})
        assert edited.text == "# top\nworkers:\n  - name: x\n    config:\n      K: v\n  - name: y\n# end"

    def test_the_shared_mapping_of_an_alias_is_not_changed(self) -> None:
        text = "sandbox: &c {K: v}\nworkers:\n  - name: x\n    config: *c\n"
        edited = put_worker(text, {"name": "x", "config": {"L": "w"}})
        assert data(edited.text) == {
            "sandbox": {"K": "v"},
            "workers": [{"name": "x", "config": {"K": "v", "L": "w"}}],
        }

    def test_merged_values_count_as_the_users(self) -> None:
        text = "sandbox: &c {K: v}\nworkers:\n  - name: x\n    config:\n      <<: *c\n"
        assert put_worker(text, {"name": "x", "config": {"K": "w"}}).action == "unchanged"
        edited = put_worker(text, {"name": "x", "config": {"L": "w"}})
        assert data(edited.text)["workers"][0]["config"] == {"K": "v", "L": "w"}

    def test_only_the_first_of_engine_instances_is_edited(self) -> None:
        text = "workers:\n  - name: http\n  - name: http\n    config: {port: 1}\n"
        after = put_worker(text, {"name": "http", "config": {"port": 2}}).text
        assert [entry.get("config") for entry in data(after)["workers"]] == [{"port": 2}, {"port": 1}]


class TestRefusals:
    def test_unknown_worker(self) -> None:
        with pytest.raises(WorkerNotInstalled, match=r"'x' is not in config\.yaml") as caught:
            remove_worker("workers: []\n", "x")
        assert caught.value.hint is not None
        with pytest.raises(WorkerNotInstalled) as caught:
            remove_worker("workers: [{name: http}, {name: resize}]\n", "resise")
        assert caught.value.hint == "did you mean 'resize'?"

    def test_invalid_file_is_not_edited(self) -> None:
        with pytest.raises(UnknownKey, match=r"config.yaml:1: unknown key 'worker'"):
            put_worker("worker: []\n", NEW)

    @pytest.mark.parametrize("text", ["sandbox: &w []\nworkers: *w\n", "- a\n", "text\n"])
    def test_odd_files_are_refused(self, text: str) -> None:
        with pytest.raises(ConfigError):
            put_worker(text, NEW)

    def test_an_anchor_that_others_need_is_not_removed(self) -> None:
        text = "workers:\n  - name: x\n    config: &c {K: v}\n  - name: y\n    config: *c\n"
        with pytest.raises(ConfigError, match="cannot be edited safely"):
            remove_worker(text, "x")
        assert names(remove_worker(text, "y").text) == ["x"]

    def test_the_last_removal_leaves_an_empty_list(self) -> None:
        text = "# top\nworkers: # mine\n  - name: x\n    # inner\n# end\n"
        assert remove_worker(text, "x").text == "# top\nworkers: [] # mine\n# end\n"


@given(st.text(max_size=30))
@settings(max_examples=150, deadline=None)
@example("yes")
@example("0o17")
@example("1e5")
@example("a: b # c")
@example("\u2028")
@example("- x")
@example("\ud7ff\x85\ufeff")
@example("~")
@example("'\"")
def test_any_text_survives_being_written(value: str) -> None:
    for text in ("workers: []\n", "workers: [{name: x}]\n"):
        after = put_worker(text, {"name": "zz-new", "config": {"K": value}}).text
        assert data(after)["workers"][-1]["config"] == {"K": value}


# --- files as people write them, by the thousand ----------------------------------------------------------------------

comment = st.sampled_from(["", "", "", " # note", "   #\ttabbed", " # - name: fake", " # köttur"])
filler = st.sampled_from(["", "\n", "# full line\n", "  # indented\n", "\n\n# para\n\n", "      # deep\n", "   \n"])
config_lines = st.sampled_from(
    [
        ["config:", "  K: v"],
        ["config: {K: v, L: [1, 2]}"],
        ["config:", "  K: |", "    one", "", "    two", "  L: 'x'"],
        ["config:", "  K: >-", "    folded", "    text"],
        ["config:", "  K: |+", "    kept", ""],
        ["config: {", "  K: v,", "  }"],
        ["config:"],
        ["config:", "  list:", "  - 1", "  - a: b"],
        ["config:", '  "q": "a # b: c"', "  'single': 'it''s'"],
        ["config:", "  plain: one", "    two"],
        ["env: {A: ${A}}".replace("${A}", '"${A}"')],
        [],
    ]
)


@st.composite
def entries(draw: st.DrawFn, name: str, flow: bool = False) -> list[str]:
    shown = draw(st.sampled_from([name, f"'{name}'", f'"{name}"']))
    if flow or draw(st.integers(0, 4)) == 0:
        return [draw(st.sampled_from([f"{{name: {shown}}}", f"{{image: a/b, name: {shown}, config: {{K: [1, 2]}}}}"]))]
    first = [f"name: {shown}{draw(comment)}"]
    parts = [first, draw(config_lines)]
    if draw(st.booleans()):
        parts.append([f"image: a/{name}:1{draw(comment)}"])
    if draw(st.booleans()):
        parts.insert(1, ["# about it"])
    head = draw(st.integers(0, 1))
    ordered = parts if head else [parts[0], *reversed(parts[1:])]
    if draw(st.booleans()) and parts[-1] and not parts[-1][0].startswith("#"):
        ordered = [parts[-1], *parts[:-1]]
    return [line for part in ordered for line in part]


@st.composite
def files(draw: st.DrawFn) -> tuple[str, list[str]]:
    found = [f"w{index}" for index in range(draw(st.integers(1, 4)))]
    text = draw(st.sampled_from(["", "# top\n\n", "sandbox:\n  backend: auto\n", "---\n"]))
    indentation = " " * draw(st.sampled_from([0, 2, 4]))
    gap = " " * draw(st.sampled_from([1, 1, 3]))
    text += f"workers:{draw(comment)}\n"
    for name in found:
        lines = draw(entries(name))
        text += draw(filler)
        inner = indentation + " " + gap
        first, *rest = lines
        text += f"{indentation}-{gap}{first}\n" + "".join(f"{inner}{line}\n" if line else "\n" for line in rest)
    text += draw(filler)
    text += draw(st.sampled_from(["", "rootfs: {mode: overlay}\n", "# the end\n"]))
    if draw(st.booleans()):
        text = text.removesuffix("\n")
    if draw(st.integers(0, 3)) == 0:
        text = text.replace("\n", "\r\n")
    return text, found


@given(files())
@example(("workers:\n- name: w0\n  config:\n    K: |+\n      kept\n\n      # deep", ["w0"]))
@example(("workers:\r\n- name: w0\r\n  config:\r\n    K: |+\r\n      kept\r\n\r\n   ", ["w0"]))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
def test_edits_leave_the_rest_alone(file: tuple[str, list[str]]) -> None:
    text, found = file
    try:
        assert names(text) == found
    except ConfigError:
        return  # the generator may put a comment where YAML allows none
    if not text.endswith("\n") and data(text) != data(f"{text}\n"):
        refused = ""
        try:  # mostly it is: a block scalar that has no last line end would get one
            put_worker(text, NEW)
        except ConfigError as error:
            refused = error.message
        if refused:
            assert "cannot be edited safely" in refused
            return
    after = put_worker(text, NEW).text
    taken, _ = outside(text, after)
    assert taken == ""
    assert names(after) == [*found, "zz-new"]
    assert remove_worker(after, "zz-new").text == text
    for name in found:
        removed = remove_worker(text, name).text
        taken, put = outside(text, removed if len(found) > 1 else removed.replace(" []", "", 1))
        assert put == ""
        assert names(removed) == [other for other in found if other != name]
        for other in found:
            assert other == name or f"name: {other}" not in taken
        updated = put_worker(text, {"name": name, "config": {"ADDED": "1"}}).text
        taken, put = outside(text, updated)
        assert "ADDED" in put
        assert all(other == name or f"a/{other}:1" not in taken for other in found)

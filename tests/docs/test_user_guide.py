"""What the user guide and the README show exists: commands, options, error codes, settings, links."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from iii_core import errors
from iii_core.app.settings import ListenerSettings
from iii_core.project.config import parse_config
from iii_core.project.read import parse_document
from iii_core.project.sandbox_settings import PROJECT_KEYS, WORKER_KEYS, Places
from iii_core.workers.declare import managed_specs
from iii_core.workers.spec import WorkerSpec
from iiitools.waiting import PATIENCE
from iiitools.worktree import ROOT

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GUIDE = ROOT / "docs" / "user-guide.md"
III = Path(sys.executable).with_name("iii")


def code(path: Path) -> str:
    """Everything that is written as code, a line per piece."""
    text = path.read_text(encoding="utf-8")
    fenced = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return "\n".join([*fenced, *re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)])


@cache
def help_of(*command: str) -> str:
    done = subprocess.run([III, *command, "--help"], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def commands(path: Path) -> set[tuple[str, ...]]:
    """``worker add`` and the like, with the options that follow."""
    found: set[tuple[str, ...]] = set()
    for line in re.findall(r"^(?:\$ )?iii (.*)$", code(path), re.MULTILINE):
        words = re.split(r"  #|  +\w", line)[0].split(" -- ")[0].split()
        names = [word for word in words if re.fullmatch(r"[a-z]+", word)]
        options = [word for word in words if word.startswith("-") and word != "--"]
        group = names[:2] if names[:1] in (["worker"], ["plugins"], ["sandbox"]) else names[:1]
        found.add((*group, *options))
    return found


@pytest.mark.timeout(240)  # a program for each command
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_exist(path: Path) -> None:
    for words in commands(path):
        names = [word for word in words if not word.startswith("-")]
        if names == ["hello"]:
            continue  # a plugin's
        shown = help_of(*names)
        for option in words[len(names) :]:
            assert option in shown or option in help_of(), f"{path.name}: iii {' '.join(names)} has no {option}"


def test_there_are_commands_to_check() -> None:
    assert {("worker", "add"), ("worker", "exec", "--timeout"), ("plugins", "list")} <= commands(GUIDE)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_error_codes_exist(path: Path) -> None:
    known = {
        kind.default_code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "default_code")
    }
    assert set(re.findall(r"\bW\d{3}\b", path.read_text(encoding="utf-8"))) <= known


def test_the_example_of_config_yaml_is_valid() -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    places = Places(project=GUIDE.parent, user_home=Path("/home/me"))
    specs: dict[str, WorkerSpec] = {}
    for block in blocks:
        specs |= managed_specs(
            parse_config(parse_document(block, name="user-guide.md")), {"MY_API_KEY": "k"}, places=places
        )
    assert [spec.problem for spec in specs.values() if spec.problem] == []
    spec = specs["image-resize"]
    assert spec.env == {
        "LOG_LEVEL": "debug", "MY_API_KEY": "k", "S3_BUCKET": "pics", "S3_RETRIES": "3", "TZ": "Europe/Berlin",
    }  # fmt: skip
    assert (spec.limits.cpus, spec.limits.memory_mib, spec.limits.pids) == (1, 512, 256)
    assert (len(specs["thumbs"].mounts), len(specs["thumbs"].ports)) == (2, 1)


def test_settings_of_sandboxes_are_all_named() -> None:
    section = GUIDE.read_text(encoding="utf-8")
    assert not [key for key in (*WORKER_KEYS, *PROJECT_KEYS) if not re.search(rf"`{key}\b", section)]


def test_settings_of_listeners_are_all_named() -> None:
    section = GUIDE.read_text(encoding="utf-8")
    assert not [name for name in ListenerSettings.__struct_fields__ if not re.search(rf"`{name}\b", section)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if "://" in file:
            continue
        found = path if not file else (path.parent / file)
        assert found.exists(), f"{path.name} links to {target}"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in slugs, f"{path.name} links to {target}"


@pytest.mark.parametrize("command", ["pip install", "uv tool install"])
def test_the_folders_to_install_need_no_other(command: str) -> None:
    """None of these distributions is in a package index: what one needs must be named too."""
    lines = re.findall(rf"^{command} ((?:.*\\\n)*.*)$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    folders = [word for word in lines[0].split() if word.startswith(".")]
    projects = [tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"] for folder in folders]
    named = {project["name"] for project in projects}
    assert len(named) > 5
    needed = {re.split(r"[=<>~ ;\[]", text)[0] for project in projects for text in project.get("dependencies", [])}
    assert {name for name in needed if name.startswith("iii-")} <= named

"""The code of the documentation, as files: a fenced block whose first line is ``# path/to/file`` is that file."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from iiitools.worktree import ROOT

GUIDE = ROOT / "docs" / "plugin-authors.md"
_BLOCK = re.compile(r"^```\w+\n# (\S+/\S+|\S+\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def tutorial_files(document: Path = GUIDE) -> dict[str, str]:
    """Path → content, of every named block; a path that occurs twice is an error."""
    found: dict[str, str] = {}
    for path, content in _BLOCK.findall(document.read_text(encoding="utf-8")):
        if path in found:
            raise ValueError(f"{document.name} has two files {path}")
        found[path] = content.lstrip("\n")
    return found


def install_tutorial(name: str, site: Path) -> Path:
    """Put one distribution of the guide into ``site``, a folder for ``sys.path``, as an installer would."""
    named = {path.removeprefix("examples/"): text for path, text in tutorial_files().items()}
    files = {path.removeprefix(f"{name}/"): text for path, text in named.items() if path.startswith(f"{name}/")}
    project = tomllib.loads(files.pop("pyproject.toml"))["project"]
    for path, text in files.items():
        target = site / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        (target.parent / "__init__.py").touch()
    info = site / f"{name.replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {project['version']}\n")
    entries = "".join(f"{key} = {value}\n" for key, value in project["entry-points"]["iii"].items())
    (info / "entry_points.txt").write_text(f"[iii]\n{entries}")
    return site

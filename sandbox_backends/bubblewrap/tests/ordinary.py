"""Runs a module of these tests as an ordinary user, in a mount namespace of its own, so that nothing here changes.

    unshare --mount python ordinary.py '{"uid": …, "scratch": "/…", "files": {…}, "hide": […], "show": […]}' MODULE …

The user gets to see the folders of ``show`` even if they are below somebody's private home; ``files`` have other
contents, by path; the folders of ``hide`` are empty; ``scratch`` is an empty folder. With ``tun`` everybody may open
``/dev/net/tun``, as most machines have it.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def cover(path: str, text: str, scratch: str) -> None:
    """Give a file other contents, by an overlay of its folder."""
    layer = tempfile.mkdtemp(dir=scratch)
    mount("-t", "tmpfs", "-o", "mode=0755", "none", layer)
    for name in ("upper", "work"):
        Path(layer, name).mkdir(mode=0o755)
    folder = Path(path).parent
    options = f"lowerdir={folder},upperdir={layer}/upper,workdir={layer}/work"
    mount("-t", "overlay", "-o", options, "none", str(folder))
    Path(path).unlink(missing_ok=True)
    Path(path).write_text(text, encoding="utf-8")


def show(paths: Iterable[str], scratch: str) -> None:
    """Open the way to folders: a private folder above them is covered by one that holds nothing but the way.

    Of a folder that is private itself, what is in it is shown.
    """
    below: dict[str, list[str]] = {}
    for path in sorted({str(inside) for shown in paths for inside in passable(Path(shown).resolve())}):
        closed = [str(parent) for parent in Path(path).parents if not parent.stat().st_mode & 0o001]
        if closed:
            below.setdefault(closed[-1], []).append(path)
    for closed, inside in below.items():
        stages = [stage_for(path, scratch) for path in inside]
        for stage, path in zip(stages, inside, strict=True):
            mount("--bind", path, stage)
        mount("-t", "tmpfs", "-o", "mode=0755", "none", closed)
        for stage, path in zip(stages, inside, strict=True):
            if Path(stage).is_dir():
                Path(path).mkdir(parents=True, exist_ok=True)
            elif not Path(path).exists():
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).touch()
            mount("--move", stage, path)
            (Path(stage).rmdir if Path(stage).is_dir() else Path(stage).unlink)()


def passable(path: Path) -> list[Path]:
    """The folder itself, or what is in it if only its owner may enter it."""
    return [path] if path.stat().st_mode & 0o001 else [inside for inside in path.iterdir() if not inside.is_symlink()]


def stage_for(path: str, scratch: str) -> str:
    """An empty place of the same kind."""
    if Path(path).is_dir():
        return tempfile.mkdtemp(dir=scratch)
    handle, name = tempfile.mkstemp(dir=scratch)
    os.close(handle)
    return name


def main() -> None:
    wish = json.loads(sys.argv[1])
    os.umask(0o022)
    mount("--make-rprivate", "/")
    for path, text in wish.get("files", {}).items():
        cover(path, text, wish["scratch"])
    if wish.get("tun"):
        mount("-t", "tmpfs", "-o", "mode=0755", "none", "/dev/net")
        os.mknod("/dev/net/tun", 0o666 | stat.S_IFCHR, os.makedev(10, 200))
        Path("/dev/net/tun").chmod(0o666)
    for path in wish.get("hide", ()):
        mount("-t", "tmpfs", "none", path)
    show(wish["show"], wish["scratch"])
    os.setgroups([])
    os.setresgid(wish["uid"], wish["uid"], wish["uid"])
    os.setresuid(wish["uid"], wish["uid"], wish["uid"])
    os.chdir("/")
    os.execv(sys.executable, [sys.executable, *sys.argv[2:]])


main()

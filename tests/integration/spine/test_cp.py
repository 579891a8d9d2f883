"""``iii worker cp`` on a real sandbox, both ways."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import IIIProject

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


def test_a_folder_goes_in_and_comes_back(running: IIIProject, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "data").write_bytes(data := os.urandom(1_500_000))
    (tree / "tool").write_text("#!/bin/sh\necho works\n")
    (tree / "tool").chmod(0o755)
    (tree / "link").symlink_to("sub/data")
    assert running.ok("worker", "cp", str(tree), "math-worker:/workspace") == ""
    assert running.ok("worker", "exec", "math-worker", "--", "./tree/tool") == "works\n"
    assert running.ok("worker", "cp", "math-worker:tree", str(tmp_path / "back")) == ""
    assert (tmp_path / "back" / "link").read_bytes() == data
    assert (tmp_path / "back" / "tool").stat().st_mode & 0o777 == 0o755
    (tmp_path / "into").mkdir()
    running.ok("worker", "cp", "math-worker:/workspace/tree/sub/data", str(tmp_path / "into"))
    assert (tmp_path / "into" / "data").read_bytes() == data


def test_what_cannot_be_copied_is_said(running: IIIProject, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for arguments, said in (
        (["math-worker:/nowhere", str(tmp_path)], "error: in math-worker: /nowhere: No such file or directory"),
        ([str(tmp_path / "file"), "math-worker:/nowhere/deep"], "/nowhere/deep: No such file or directory"),
        ([str(tmp_path / "gone"), "math-worker:/tmp"], "there is no"),
        (["math-worker:/etc/passwd", str(tmp_path / "gone" / "deep")], "there is no folder"),
        (["math-worker:/proc/self/mem", "math-worker:/tmp"], "one of SOURCE and TARGET"),
        ([str(tmp_path), str(tmp_path)], "one of SOURCE and TARGET"),
        ([str(tmp_path / "file"), "math-worker:"], "names no path"),
    ):
        done = running.run("worker", "cp", *arguments)
        assert done.returncode in (1, 2)
        assert said in done.stderr.decode()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_target_that_is_in_the_way_is_said(running: IIIProject, tmp_path: Path) -> None:
    running.ok("worker", "exec", "math-worker", "--", "mkdir", "-p", "/tmp/o")
    (tmp_path / "o").symlink_to(tmp_path)
    done = running.run("worker", "cp", "math-worker:/tmp/o", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        f"error: [W107] cannot copy to {tmp_path}: File exists: o",
        "hint: what is in the way is no folder (links are not followed): remove it, or copy to another target",
    ]
    assert (tmp_path / "o").is_symlink()


def test_links_that_lead_out_of_the_copy_stay_behind(running: IIIProject, tmp_path: Path) -> None:
    script = "mkdir -p d/s; ln -s /etc/passwd d/abs; ln -s ../../x d/s/up; ln -s s d/fine; echo ok >d/s/file"
    running.ok("worker", "exec", "math-worker", "--", "sh", "-c", script)
    done = running.run("worker", "cp", "math-worker:d", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.decode().count("left out: ") == 2
    assert (tmp_path / "d" / "fine" / "file").read_text() == "ok\n"
    assert not (tmp_path / "d" / "abs").is_symlink()

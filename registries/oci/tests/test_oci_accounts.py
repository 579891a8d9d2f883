"""Whom ``USER`` means, by the image's own files: the last layer's, inside the image alone, whatever is in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from iii_registry_oci.accounts import FILE_MAX, GROUPS_MAX, resolve_user

from iii_core.images.port import ImageUser
from iiitools.ocilayout import Link, tar_layer, write_layout

PASSWD = b"""\
# a comment
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin

node:x:1000:1001::/home/node:/bin/sh
node:x:7:7:the second does not count:/other:/bin/sh
1234:x:5:5:a name that looks like an id:/five:/bin/sh
"""
GROUP = b"""\
root:x:0:
wheel:x:10:root,node
node:x:1001:node
staff:x:50:someone,node
staff:x:51:node
5000:x:60:
"""


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", ImageUser(uid=0, gid=0, home="/root")),
        ("root", ImageUser(uid=0, gid=0, home="/root")),
        ("node", ImageUser(uid=1000, gid=1001, groups=(10, 50, 51), home="/home/node")),
        ("1000", ImageUser(uid=1000, gid=1001, groups=(10, 50, 51), home="/home/node")),
        ("node:staff", ImageUser(uid=1000, gid=50, home="/home/node")),
        ("node:7", ImageUser(uid=1000, gid=7, home="/home/node")),
        ("1000:wheel", ImageUser(uid=1000, gid=10, home="/home/node")),
        ("1234", ImageUser(uid=1234, gid=0)),
        ("999:888", ImageUser(uid=999, gid=888)),
        ("999:staff", ImageUser(uid=999, gid=50)),
        ("node:5000", ImageUser(uid=1000, gid=5000, home="/home/node")),
        ("node:", ImageUser(uid=1000, gid=1001, groups=(10, 50, 51), home="/home/node")),
        (":staff", ImageUser(uid=0, gid=50, home="/root")),
        ("nobody", None),
        ("node:nobody", None),
        ("999:nobody", None),
        ("Node", None),
        ("# a comment", None),
    ],
)
def test_users(user: str, expected: ImageUser | None) -> None:
    assert resolve_user(user, PASSWD, GROUP) == expected


def test_without_files_numbers_alone_are_known() -> None:
    assert resolve_user("", b"", b"") == resolve_user("0", b"", b"") == ImageUser(uid=0, gid=0)
    assert resolve_user("5:6", b"", b"") == ImageUser(uid=5, gid=6)
    assert resolve_user("root", b"", b"") is None


@pytest.mark.parametrize(
    "line",
    [
        b"u:x:4294967295:0::/:/bin/sh",
        b"u:x:99999999999999999999:0::/:/bin/sh",
        b"u:x:-1:0::/:/bin/sh",
        b"u:x:+1:0::/:/bin/sh",
        b"u:x: 1:0::/:/bin/sh",
        b"u:x:1_0:0::/:/bin/sh",
        b"u:x:0x1:0::/:/bin/sh",
        b"u:x::0::/:/bin/sh",
        b"u:x:1:::/:/bin/sh",
        b"u:x:1",
        b"u",
        b"u:x:1:1::/:/bin/sh:more",
        b"u\0:x:1:1::/:/bin/sh",
        b"u:x:\xd9\xa1:1::/:/bin/sh",
        b"+u::1:1::/:",
        b":x:1:1::/:/bin/sh",
    ],
)
def test_lines_that_make_no_sense_are_passed_over(line: bytes) -> None:
    assert resolve_user("u", line, b"") is None
    found = resolve_user("u", line + b"\nu:x:3:4::/h:/bin/sh", b"")
    assert found == ImageUser(uid=3, gid=4, home="/h")


@pytest.mark.parametrize("home", [b"relative", b"", b"/\xff", b"/a\x1b[2J", b"/a\x00b", b"/" + b"x" * 5000])
def test_a_home_that_cannot_be_one_is_left_out(home: bytes) -> None:
    found = resolve_user("u", b"u:x:3:4::" + home + b":/bin/sh", b"")
    assert found == ImageUser(uid=3, gid=4)


def test_groups_are_bounded_and_come_once() -> None:
    group = b"".join(b"g%d:x:%d:u\n" % (at, at % 500) for at in range(2000))
    found = resolve_user("u", b"u:x:3:4::/h:/bin/sh", group)
    assert found is not None
    assert found.groups == tuple(at for at in range(GROUPS_MAX + 1) if at != 4)


def line(name: str, uid: int) -> bytes:
    return f"{name}:x:{uid}:{uid}::/home/{name}:/bin/sh\n".encode()


@pytest.mark.parametrize(
    ("layers", "uid"),
    [
        ([{"etc/passwd": line("u", 1)}], 1),
        ([{"etc/passwd": line("u", 1)}, {"etc/passwd": line("u", 2)}], 2),
        ([{"etc/passwd": line("u", 1)}, {"etc/.wh.passwd": b""}], None),
        ([{"etc/passwd": line("u", 1)}, {".wh.etc": b""}], None),
        ([{"etc/passwd": line("u", 1)}, {"etc/": None, "etc/.wh..wh..opq": b""}], None),
        ([{"etc/passwd": line("u", 1)}, {"etc/.wh.passwd": b"", "etc/passwd": line("u", 3)}], 3),
        ([{"usr/passwd": line("u", 4), "etc": Link("usr")}], 4),
        ([{"etc/passwd": Link("../../../usr/./users"), "usr/users": line("u", 5)}], 5),
        ([{"etc/passwd": Link("/usr/users"), "usr/users": line("u", 6)}], 6),
        ([{"usr/users": line("u", 7)}, {"etc/passwd": Link("usr/users", "hard")}], 7),
        ([{"etc/passwd": Link("passwd")}], None),
        ([{"etc/passwd": Link("/proc/self/environ")}], None),
        ([{"etc/passwd/": None}], None),
        ([{"etc/passwd": line("u", 8) + b"#" * FILE_MAX}], None),
        ([{"etc/passwd": b"\xff\0\n\n::::::\n" * 1000 + line("u", 9)}], 9),
        ([{"etc/passwd": b":" * 500_000 + b"\n" + b"\n" * 500_000 + line("u", 10)}], 10),
    ],
)
def test_the_files_are_those_of_the_merged_image(
    merge_layers: Callable[..., Any], layers: list[Mapping[str, Any]], uid: int | None
) -> None:
    files = merge_layers(*map(tar_layer, layers)).merged.files
    found = resolve_user("u", files.get(b"etc/passwd", b""), files.get(b"etc/group", b""))
    assert (found and found.uid) == uid


@pytest.mark.integration
async def test_it_is_kept_with_the_image(tmp_path: Path, open_store: Any, steps: Any) -> None:
    layers = [tar_layer({"etc/passwd": PASSWD, "etc/group": GROUP}), tar_layer({"x": b""})]
    for tag, user in (("known", "node"), ("unknown", "nobody"), ("none", "")):
        write_layout(tmp_path / "layout", tag=tag, layers=layers, config={"User": user})
    async with open_store() as images:
        sources = [f"oci:{tmp_path}/layout:{tag}" for tag in ("known", "unknown", "none")]
        users = [(await images.fetch(source, refresh=False, progress=steps)).user for source in sources]
    assert users == [resolve_user("node", PASSWD, GROUP), None, ImageUser(uid=0, gid=0, home="/root")]
    async with open_store() as images:
        assert [(await images.stored(source)).user for source in sources] == users

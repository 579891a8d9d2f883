"""Files in and out by the real agent (docs/protocol/agent.md, "COPY")."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest
import trio

from iii_core.errors import UsageError
from iii_core.sandbox.agent import Agent, AgentProcess
from iii_core.sandbox.archive import Unpacker, pack

from .agentkit import StartAgent, outcome

LONG = "n" * 90
NAMES = ["plain", "with space", "-rf", "uml\u00e4ut", LONG, f"deep/{LONG}/{LONG}/{LONG}/file"]


def make_tree(folder: Path) -> Path:
    tree = folder / "tree"
    for number, name in enumerate(NAMES):
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom([0, 1, 511, 512, 513, 300_000][number]))
        os.utime(path, (number + 1e9, number + 1e9))
    (tree / "plain").chmod(0o640)
    (tree / "-rf").chmod(0o755)
    (tree / "empty").mkdir()
    (tree / "link").symlink_to("deep")
    (tree / "deep" / LONG / "long link").symlink_to(f"../{LONG}/{LONG}/{LONG}")
    (tree / "closed").mkdir()
    (tree / "closed" / "inner").write_text("x")
    (tree / "closed").chmod(0o500)
    return tree


def describe(tree: Path) -> dict[str, object]:
    """All that a copy keeps."""
    found: dict[str, object] = {}
    for path in sorted(tree.rglob("*")):
        status = path.lstat()
        content = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        mode = None if path.is_symlink() else status.st_mode & 0o777
        found[str(path.relative_to(tree))] = (content, mode, int(status.st_mtime) if path.is_file() else None)
    return found


async def send(process: AgentProcess, archive: Iterable[bytes]) -> tuple[str, int]:
    """Send it as input; gives the complaints and the exit code."""
    complaints = b""

    async def feed() -> None:
        for piece in archive:
            await process.send_stdin(piece)
        await process.close_stdin()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        _, complaints, status = await outcome(process)
    return complaints.decode(), status.as_shell()


async def copy_out(agent: Agent, path: Path, target: Path) -> tuple[str, int]:
    process = await agent.copy_out(str(path))
    unpacker = Unpacker(target)
    complaints = b""
    try:
        while (output := await process.receive_output()) is not None:
            if output[0] == 1:
                unpacker.feed(output[1])
            else:
                complaints += output[1]
        unpacker.finish()
    finally:
        unpacker.close()
    return complaints.decode(), (await process.wait()).as_shell()


async def test_a_tree_comes_out_as_it_is(start_agent: StartAgent, tmp_path: Path) -> None:
    tree = make_tree(tmp_path)
    (tmp_path / "into").mkdir()
    async with start_agent() as agent:
        assert await copy_out(agent, tree, tmp_path / "into") == ("", 0)
        assert await copy_out(agent, tree, tmp_path / "named") == ("", 0)
        assert await copy_out(agent, tree / "plain", tmp_path / "one file") == ("", 0)
    expected = describe(tree) | {"closed": (None, 0o700, None)}
    assert describe(tmp_path / "into" / "tree") == expected
    assert describe(tmp_path / "named") == expected
    assert (tmp_path / "one file").read_bytes() == (tree / "plain").read_bytes()


async def test_a_tree_goes_in_as_it_is(start_agent: StartAgent, tmp_path: Path) -> None:
    tree = make_tree(tmp_path)
    (tmp_path / "into").mkdir()
    (tmp_path / "into" / "tree").mkdir()
    (tmp_path / "into" / "tree" / "plain").symlink_to("/etc/hostname")  # is replaced, not written through
    async with start_agent() as agent:
        for target in (tmp_path / "into", tmp_path / "named"):
            assert await send(await agent.copy_in(str(target)), pack(tree)) == ("", 0)
        assert await send(await agent.copy_in(str(tmp_path / "one")), pack(tree / "with space")) == ("", 0)
    expected = describe(tree) | {"closed": (None, 0o700, None)}
    assert describe(tmp_path / "into" / "tree") == expected
    assert describe(tmp_path / "named") == expected
    assert (tmp_path / "one").read_bytes() == (tree / "with space").read_bytes()


async def test_what_tar_makes_of_it_is_the_same(start_agent: StartAgent, tmp_path: Path) -> None:
    """The agent's archive, read by another program's reader."""
    tree = make_tree(tmp_path)
    async with start_agent() as agent:
        archive, complaints, status = await outcome(await agent.copy_out(str(tree)))
    assert (complaints, status.code) == (b"", 0)
    with tarfile.open(fileobj=io.BytesIO(archive)) as read:
        assert {member.name for member in read} == {"tree", *(f"tree/{name}" for name in describe(tree))}
    (tmp_path / "by tar").mkdir()
    unpacking = ["tar", "--extract", "--preserve-permissions", "--directory", str(tmp_path / "by tar")]
    await trio.run_process(unpacking, stdin=archive)
    assert describe(tmp_path / "by tar" / "tree") == describe(tree)


async def test_what_cannot_be_copied_is_named_and_the_rest_is(start_agent: StartAgent, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    os.mkfifo(tree / "pipe")
    (tree / "file").write_text("fine")
    async with start_agent() as agent:
        said, code = await copy_out(agent, tree, tmp_path / "out")
        assert (said, code) == ("tree/pipe: left out: neither a file nor a folder nor a link\n", 1)
        assert (tmp_path / "out" / "file").read_text() == "fine"
        _, complaints, status = await outcome(await agent.copy_out(str(tmp_path / "gone")))
        assert (complaints, status.code) == (f"{tmp_path}/gone: No such file or directory\n".encode(), 1)
        for target in (tmp_path / "gone" / "deeper", tree / "file" / "below"):
            said, code = await send(await agent.copy_in(str(target)), pack(tree / "file"))
            assert (code, said.count("\n")) == (1, 1)


def archive(*members: tarfile.TarInfo) -> list[bytes]:
    return [b"".join(member.tobuf(tarfile.PAX_FORMAT) for member in members) + bytes(1024)]


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, target, 0o755
    return info


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([member("../out")], "such a name is not unpacked"),
        ([member("/out")], "such a name is not unpacked"),
        ([member("a/../../out")], "such a name is not unpacked"),
        ([member("a", tarfile.SYMTYPE, ".."), member("a/out")], "Not a directory"),
        ([member("a", tarfile.BLKTYPE)], "Operation not supported"),
        ([member("a", tarfile.LNKTYPE, "b")], "Operation not supported"),
    ],
)
async def test_the_agent_unpacks_below_its_target_only(
    start_agent: StartAgent, tmp_path: Path, members: list[tarfile.TarInfo], said: str
) -> None:
    (tmp_path / "target").mkdir()
    async with start_agent() as agent:
        complaints, code = await send(await agent.copy_in(str(tmp_path / "target")), archive(*members))
    assert code == 1
    assert said in complaints
    assert not (tmp_path / "out").exists()


async def test_an_archive_that_is_cut_or_malformed_fails(start_agent: StartAgent, tmp_path: Path) -> None:
    whole = b"".join(pack(make_tree(tmp_path)))
    async with start_agent() as agent:
        for broken, said in (
            (whole[:-2000], "No data available"),
            (whole[:700], "No data available"),
            (b"\xff" * 1024, "Bad message"),
            (b"", "No data available"),
        ):
            complaints, code = await send(await agent.copy_in(str(tmp_path / "target")), [broken])
            assert code == 1
            assert said in complaints


async def test_a_copy_that_is_given_up_ends(start_agent: StartAgent, tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(1 << 30)
    async with start_agent() as agent:
        process = await agent.copy_out(str(big))
        assert await process.receive_output() is not None
        await process.kill()
        with trio.fail_after(30):
            assert (await process.wait()).signal == 9
        with pytest.raises(UsageError):
            await agent.copy_out("")

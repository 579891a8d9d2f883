"""Processes with pipes, by the real agent."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
from pathlib import Path

import psutil
import pytest
import trio

from iii_core.errors import ProcessSpawnError, UsageError
from iii_core.sandbox.agent import Agent, AgentTimeouts, ExitStatus

from .agentkit import StartAgent, outcome, run, spec, until

BUSY = "while :; do sleep 0.01; done 2>/dev/null"
PYTHON = str(Path("/proc/self/exe").resolve())


async def test_output_and_exit_code(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        assert await run(agent, "sh", "-c", "echo out; echo err >&2; exit 7") == (b"out\n", b"err\n", ExitStatus(7))
        assert await run(agent, "true") == (b"", b"", ExitStatus(0))


async def test_ten_mebibytes_through_cat_are_byte_exact(start_agent: StartAgent) -> None:
    data = random.Random(1).randbytes(10 << 20)
    async with start_agent() as agent, trio.open_nursery() as nursery:
        process = await agent.spawn(spec("cat", stdin=True))

        async def feed() -> None:
            await process.send_stdin(data)
            await process.close_stdin()

        nursery.start_soon(feed)
        out, err, status = await outcome(process)
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()
    assert (err, status) == (b"", ExitStatus(0))


async def test_end_of_input(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        process = await agent.spawn(spec("wc", "-c", stdin=True))
        await process.send_stdin(b"four")
        await process.close_stdin()
        await process.close_stdin()
        assert await outcome(process) == (b"4\n", b"", ExitStatus(0))


async def test_without_input_it_reads_nothing(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        process = await agent.spawn(spec("wc", "-c"))
        await process.send_stdin(b"dropped")
        assert await outcome(process) == (b"0\n", b"", ExitStatus(0))


async def test_input_nobody_reads_is_dropped(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        process = await agent.spawn(spec("sh", "-c", "exec 0<&-; echo closed; sleep 0.2", stdin=True))
        assert await process.receive_output() == (1, b"closed\n")
        with trio.fail_after(30):
            await process.send_stdin(bytes(1 << 20))
        assert (await outcome(process))[2] == ExitStatus(0)
        await process.send_stdin(b"nobody is there")


@pytest.mark.parametrize(
    ("argv", "cwd", "number", "like"),
    [
        (["no-such-program"], "/", errno.ENOENT, 127),
        (["/no/such/program"], "/", errno.ENOENT, 127),
        ([""], "/", errno.ENOENT, 127),
        (["/etc/passwd"], "/", errno.EACCES, 126),
        (["/etc"], "/", errno.EACCES, 126),
        (["true"], "/no/such/folder", errno.ENOENT, 127),
        (["true"], "/etc/passwd", errno.ENOTDIR, 126),
    ],
)
async def test_what_cannot_be_started(
    start_agent: StartAgent, argv: list[str], cwd: str, number: int, like: int
) -> None:
    async with start_agent() as agent:
        with pytest.raises(ProcessSpawnError) as caught:
            await agent.spawn(spec(*argv, cwd=cwd))
        assert (await run(agent, "echo", "fine"))[0] == b"fine\n"
    assert caught.value.details["errno"] == number
    assert caught.value.exit_code_like == like
    assert (cwd if cwd != "/" else argv[0]) in caught.value.message


async def test_the_default_directory_is_named_when_it_is_missing(start_agent: StartAgent) -> None:
    async with start_agent(before=["unshare", "-Urm"]) as agent:
        with pytest.raises(ProcessSpawnError, match="working directory /workspace: No such file") as caught:
            await agent.spawn(spec("true", cwd=None))
    assert caught.value.exit_code_like == 127


async def test_the_path_of_the_child_is_searched(
    start_agent: StartAgent, tmp_path_factory: pytest.TempPathFactory
) -> None:
    denied, good = tmp_path_factory.mktemp("denied"), tmp_path_factory.mktemp("good")
    (denied / "tool").write_text("echo denied")
    (good / "tool").write_text("echo no hash-bang, $1")
    (good / "tool").chmod(0o755)
    async with start_agent() as agent:
        found = await run(agent, "tool", "arg", env={"PATH": f"/none:{denied}:{good}"})
        assert found == (b"no hash-bang, arg\n", b"", ExitStatus(0))
        with pytest.raises(ProcessSpawnError) as caught:
            await agent.spawn(spec("tool", env={"PATH": f"{denied}:/none"}))
        assert caught.value.details["errno"] == errno.EACCES
        assert (await run(agent, "sh", "-c", "echo default", env={}))[0] == b"default\n"


async def test_the_child_has_its_environment_and_nothing_else(start_agent: StartAgent) -> None:
    report = (
        "import os,resource,signal,sys\n"
        "print(sorted(os.listdir('/proc/self/fd'))[:4], os.getcwd(), os.getsid(0)==os.getpid()==os.getpgid(0))\n"
        "print(dict(os.environ), oct(os.umask(0)))\n"
        "status = dict(l.split(':',1) for l in open('/proc/self/status'))\n"
        "print(*(status[k].strip() for k in ('SigBlk','SigIgn','NoNewPrivs')))\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "print(soft == hard)\n"
    )
    env = {"A": "1=2", "EMPTY": "", "UTF": "grün", "LC_ALL": "C.UTF-8"}
    async with start_agent() as agent:
        out, err, _ = await run(agent, PYTHON, "-IS", "-c", report, env=env)
    lines = out.decode().splitlines()
    assert err == b""
    assert lines[0] == "['0', '1', '2', '3'] / True"  # 3 is the listing itself
    assert lines[1] == f"{env} 0o22"
    assert lines[2:] == ["0000000000000000 0000000001001000 1", "True"]  # SIGPIPE and SIGXFSZ: Python's own


async def test_a_child_ignores_no_signal_because_the_agent_was_started_so(start_agent: StartAgent) -> None:
    """Those that libc keeps for its threads, 32 and 33, can come in ignored too, and libc's own call cannot undo it."""
    ignore = (
        "import ctypes, os, sys, platform\n"
        "number = {'x86_64': 13, 'aarch64': 134}[platform.machine()]  # rt_sigaction\n"
        "action = (ctypes.c_ulong * 8)(1)  # SIG_IGN\n"
        "for signal in range(1, 65): ctypes.CDLL(None).syscall(number, signal, action, None, 8)\n"
        "os.execv(sys.argv[1], sys.argv[1:])\n"
    )
    async with start_agent(before=[PYTHON, "-IS", "-c", ignore]) as agent:
        out, _, _ = await run(agent, "grep", "^Sig[IB]", "/proc/self/status")
    assert out.split() == [b"SigBlk:", b"0" * 16, b"SigIgn:", b"0" * 16]


async def test_signals_reach_the_whole_group(start_agent: StartAgent) -> None:
    script = f"""
        trap 'echo parent; wait; exit 5' TERM
        (trap 'echo child; exit' TERM; echo ready; {BUSY}) &
        {BUSY}
    """
    async with start_agent() as agent:
        process = await agent.spawn(spec("sh", "-c", script))
        assert await process.receive_output() == (1, b"ready\n")
        await process.signal(signal.SIGTERM)
        out, _, status = await outcome(process)
        assert sorted(out.split()) == [b"child", b"parent"]
        assert status == ExitStatus(5)
        await process.signal(signal.SIGTERM)


async def test_death_by_signal(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        process = await agent.spawn(spec("sleep", "100"))
        await process.signal(signal.SIGKILL)
        status = (await outcome(process))[2]
        assert (status, status.as_shell(), str(status)) == (ExitStatus(0, 9), 137, "signal 9")


async def test_kill_ends_the_group_and_drops_output(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        process = await agent.spawn(spec("sh", "-c", "yes & sleep 100 & echo $!; wait", linger=60))
        await process.receive_output()
        await process.kill()
        await process.kill()
        with trio.fail_after(30):
            assert await process.wait() == ExitStatus(0, 9)
        assert await process.receive_output() is None
        with pytest.raises(trio.ClosedResourceError):
            await process.send_stdin(b"x")
        await process.signal(signal.SIGTERM)


async def test_a_grandchild_that_keeps_the_pipe_open_does_not_hold_up_the_end(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        with trio.fail_after(30):
            out, _, status = await run(agent, "sh", "-c", "sleep 100 & echo done; exit 3")
        assert (out, status) == (b"done\n", ExitStatus(3))


async def test_a_talkative_grandchild_does_not_hold_up_the_end_either(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        with trio.fail_after(30):
            out, _, status = await run(agent, "sh", "-c", "yes & sleep 0.05; exit 3")
        assert status == ExitStatus(3)
        assert set(out) == set(b"y\n")


async def test_linger_waits_for_the_group(start_agent: StartAgent) -> None:
    script = f"""
        trap 'exit 0' TERM
        (trap 'sleep 0.3; echo saved; exit' TERM; echo ready; {BUSY}) &
        {BUSY}
    """
    async with start_agent() as agent:
        process = await agent.spawn(spec("sh", "-c", script, linger=60))
        assert await process.receive_output() == (1, b"ready\n")
        await process.signal(signal.SIGTERM)
        with trio.fail_after(30):
            out, _, status = await outcome(process)
        assert (out, status) == (b"saved\n", ExitStatus(0))


async def test_linger_has_an_end(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        before = trio.current_time()
        process = await agent.spawn(spec("sh", "-c", "sleep 100 & exit 4", linger=0.3))
        assert await process.wait() == ExitStatus(4)
        assert 0.25 < trio.current_time() - before < 30


async def test_a_slow_reader_stalls_only_its_own_process(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        unread = [await agent.spawn(spec("yes")) for _ in range(8)]
        with trio.fail_after(30):
            out, _, _ = await run(agent, "head", "-c", "3000000", "/dev/zero")
        assert out == bytes(3_000_000)
        for process in unread:
            assert process.status is None
            await process.kill()
            assert await process.wait() == ExitStatus(0, 9)


async def test_a_stalled_process_ends_with_all_of_its_output(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        process = await agent.spawn(spec("sh", "-c", "head -c 150000 /dev/zero; echo end >&2"))
        await trio.sleep(0.2)
        assert process.status is None  # more than a window waits: its end has not been told yet
        out, err, status = await outcome(process)
        assert (len(out), err, status) == (150_000, b"end\n", ExitStatus(0))


async def test_cancelling_a_spawn_leaves_nothing_behind(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        for attempt in range(20):
            with trio.move_on_after(attempt * 0.0002):
                process = await agent.spawn(spec("sleep", "12345"))
                await process.kill()
        await no_children(agent)


async def no_children(agent: Agent) -> None:
    """Wait until the agent has no child; a zombie is one too."""
    await until(lambda: not psutil.Process(agent.ready.pid).children())


async def test_hundreds_of_processes_leave_no_zombie(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        for _ in range(6):
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(run, agent, "sh", "-c", "true & true & exit 1")
        await no_children(agent)


async def test_more_processes_than_streams_wait_their_turn(start_agent: StartAgent) -> None:
    async with start_agent(timeouts=AgentTimeouts(spawn=2)) as agent:
        processes = [await agent.spawn(spec("sleep", "100")) for _ in range(255)]
        with pytest.raises(ProcessSpawnError) as caught:
            await agent.spawn(spec("true"))
        assert caught.value.details["errno"] == errno.ETIMEDOUT
        await processes[0].kill()
        await processes[0].wait()
        assert (await run(agent, "true"))[2] == ExitStatus(0)
        for process in processes:
            await process.kill()


async def test_large_arguments_and_what_is_too_large(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        env = {"PATH": "/usr/bin:/bin", **{f"V{number}": "x" * 50_000 for number in range(10)}}
        assert (await run(agent, "sh", "-c", "echo ${#V9}", env=env))[0] == b"50000\n"
        for size in (200_000, 2 << 20):
            with pytest.raises(ProcessSpawnError) as caught:
                await agent.spawn(spec("true", "x" * size))
            assert caught.value.details["errno"] == errno.E2BIG


@pytest.mark.parametrize(
    "changes",
    [
        {"argv": ()},
        {"argv": ("a\0b",)},
        {"env": {"A=B": ""}},
        {"env": {"A": "\0"}},
        {"cwd": "\0"},
        {"uid": -1},
        {"gid": 2**32},
    ],
)
async def test_a_spec_that_makes_no_sense_is_refused_here(start_agent: StartAgent, changes: dict[str, object]) -> None:
    async with start_agent() as agent:
        with pytest.raises(UsageError):
            await agent.spawn(spec("true", **changes))


@pytest.mark.skipif(os.geteuid() != 0, reason="switching users needs root")
async def test_it_runs_as_another_user(start_agent: StartAgent) -> None:
    async with start_agent() as agent:
        out, _, _ = await run(agent, "id", uid=1234, gid=2345, groups=(7, 8))
        assert out.split() == [b"uid=1234", b"gid=2345", b"groups=2345,7(lp),8(mail)"]
        out, _, _ = await run(agent, "id", "-G", uid=1234, gid=2345)
        assert out == b"2345\n"


async def test_one_user_id_is_all_there_is(start_agent: StartAgent) -> None:
    async with start_agent(before=["unshare", "-Ur"]) as agent:
        assert (await run(agent, "id", "-u", uid=0, gid=0))[0] == b"0\n"
        with pytest.raises(ProcessSpawnError, match="cannot switch to user 1000: this sandbox has only one user id"):
            await agent.spawn(spec("true", uid=1000))
        with pytest.raises(ProcessSpawnError, match="cannot switch to group 1000: this sandbox has only one user id"):
            await agent.spawn(spec("true", uid=1000, gid=1000))

"""What a worker in a bubblewrap sandbox can see and do, asked from inside; with kernel mounts and over FUSE."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import pytest
import trio
from iii_sandbox_bubblewrap import syscalls

from iii_core.sandbox.agent import Agent, ProcessSpec, TerminalSize
from iii_core.sandbox.port import Limits, RootImage, SandboxDriver
from iii_core.testing.sandbox_harness import descendants, run, run_well

from .bwrapkit import Bench

pytestmark = [
    pytest.mark.integration,
    pytest.mark.parametrize("mode", ["kernel", "identity", "fuse"]),
]


@pytest.fixture
async def box(bench: Bench, mode: str) -> AsyncGenerator[tuple[SandboxDriver, Agent]]:
    async with bench.sandbox(mode=mode) as opened:
        yield opened


@pytest.fixture
def agent(box: tuple[SandboxDriver, Agent]) -> Agent:
    return box[1]


def shell(script: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", script)


def locks(status: str) -> dict[str, str]:
    """What ``/proc/PID/status`` says of privileges."""
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return {key: lines[key].strip() for key in LOCKED}


async def locks_of(agent: Agent, spec: ProcessSpec) -> dict[str, str]:
    process = await agent.spawn(spec)
    printed = b""
    while (output := await process.receive_output()) is not None:
        printed += output[1]
    return locks(printed.decode())


NOTHING = dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), "0000000000000000")
LOCKED = {**NOTHING, "NoNewPrivs": "1", "Seccomp": "2"}


@pytest.mark.parametrize("size", [None, TerminalSize(rows=24, cols=80)], ids=["pipes", "terminal"])
async def test_programs_have_no_capability_and_cannot_gain_one(agent: Agent, size: TerminalSize | None) -> None:
    """Workers and ``exec`` are started the same way; what they start in turn has no more."""
    for argv in (("/bin/cat", "/proc/self/status"), shell("sh -c 'cat /proc/self/status'")):
        spec = ProcessSpec(argv=argv, env={"PATH": "/bin"}, cwd="/", tty=size)
        assert await locks_of(agent, spec) == LOCKED


async def has_one_user(agent: Agent) -> bool:
    """Whether the sandbox has a single user id: an ordinary user has no others to give without ``/etc/subuid``."""
    return (await run_well(agent, ("/bin/cat", "/proc/self/uid_map"))).split()[2:] == ["1"]


async def test_other_users_have_none_either(agent: Agent) -> None:
    if await has_one_user(agent):
        pytest.skip("one user id only")
    spec = ProcessSpec(argv=("/bin/cat", "/proc/self/status"), env={}, cwd="/", uid=1000, gid=1000)
    assert await locks_of(agent, spec) == LOCKED
    assert (await run_well(agent, ("/bin/id", "-u"), uid=1000)).strip() == "1000"


async def test_agent_keeps_what_it_needs_alone(agent: Agent) -> None:
    """Seen from outside; its bounding set is empty, so nothing that it starts can get back what it had."""
    needed = 0 if await has_one_user(agent) else 1 << 5 | 1 << 6 | 1 << 7  # KILL, SETGID, SETUID
    (line,) = (line for line in descendants(os.getpid()) if line.endswith(" agent"))
    found = locks(await trio.Path("/proc", line.split()[0], "status").read_text(encoding="utf-8"))
    assert found["CapBnd"] == NOTHING["CapBnd"]
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "2"
    assert int(found["CapPrm"], 16) == needed


async def test_root_of_the_sandbox_is_not_root_of_the_machine(agent: Agent, mode: str) -> None:
    inside = (await run_well(agent, ("/bin/cat", "/proc/self/uid_map"))).split()
    assert inside[0] == "0"
    if mode == "kernel" and os.geteuid() == 0:
        assert int(inside[1]) >= 0x10000
        process = await agent.spawn(ProcessSpec(argv=("/bin/sleep", "60"), env={}, cwd="/"))
        outside = [line for line in descendants(os.getpid()) if line.endswith("sleep")]
        status = await trio.Path(f"/proc/{outside[0].split()[0]}/status").read_text(encoding="utf-8")
        await process.kill()
        (uids,) = (line for line in status.splitlines() if line.startswith("Uid:"))
        assert "0" not in uids.split()[1:]


async def test_only_loopback(agent: Agent) -> None:
    table = await run_well(agent, ("/bin/cat", "/proc/net/dev"))
    assert [line.split(":")[0].strip() for line in table.splitlines()[2:]] == ["lo"]
    assert "LOOPBACK,UP" in await run_well(agent, ("/bin/ip", "link"))
    status, _ = await run(agent, shell("ping -c1 -W1 10.0.0.1 || nc -w1 10.0.0.1 80"))
    assert status.as_shell() != 0


async def test_processes_of_the_machine_are_invisible(agent: Agent) -> None:
    pids = (await run_well(agent, shell("cd /proc; ls -d [0-9]*"))).split()
    assert len(pids) <= 3
    status, _ = await run(agent, shell(f"kill -0 {os.getpid()}"))
    assert status.as_shell() != 0


async def test_files_of_the_machine_are_invisible(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of the machine", encoding="utf-8")
    status, _ = await run(agent, ("/bin/cat", str(tmp_path / "secret")))
    assert status.as_shell() != 0
    names = set((await run_well(agent, ("/bin/ls", "/"))).split())
    assert names == {"bin", "dev", "etc", "proc", "run", "tmp", "workspace"}
    mounts = await run_well(agent, ("/bin/cat", "/proc/mounts"))
    assert str(tmp_path) not in mounts
    assert {line.split()[1] for line in mounts.splitlines()} >= {"/", "/proc", "/dev", "/tmp", "/run"}


@pytest.mark.parametrize(
    "script",
    [
        "mount -t tmpfs none /workspace",
        "mount -o remount,rw /run/iii/agent",
        "umount /tmp",
        "chroot /workspace true",
        "unshare -U true",
        "unshare -m true",
        "unshare -n true",
        "mknod /workspace/sda b 8 0",
        "echo x > /run/iii/agent",
        "rm /run/iii/agent",
        "echo hacked > /proc/sys/kernel/hostname",
        "echo 1 > /proc/sys/user/max_user_namespaces",
        "echo c > /proc/sysrq-trigger",
        "hostname hacked",
        "ip link add dummy0 type dummy",
        "dmesg",
        "reboot -f",
        "cat /proc/1/environ",
        "cat /proc/1/fd/11",
        "readlink /proc/1/fd/2",
        "echo x > /proc/sys/kernel/core_pattern",
        "echo x > /proc/self/comm",
        "touch /proc/irq/0/smp_affinity",
        "test -s /proc/keys",
        "dd if=/proc/1/mem of=/dev/null bs=1 count=1",
        "kill -9 1; kill -0 1 && false",
        "cat /dev/kmsg",
        "echo 1000 > /proc/1/oom_score_adj",
        "echo 1000 > /proc/1/task/1/oom_score_adj",
        "echo 15 > /proc/1/oom_adj",
        "echo 15 > /proc/1/task/1/oom_adj",
        "mount -o remount,rw /dev",
        "touch /dev/x",
        "mkdir /dev/x",
        "rm /dev/null",
        *(f"chmod 666 /dev/{name}" for name in ["null", "zero", "full", "random", "urandom", "tty"]),
        *(f"chown 0 /dev/{name}" for name in ["null", "zero", "full", "random", "urandom", "tty"]),
        "touch /dev/null",
        "chmod 444 /proc/meminfo",
        "chmod 555 /proc/sys",
        "chmod 755 /run/iii/agent",
        "mount -o remount,rw /proc",
        "ls /dev/vda || ls /dev/loop0 || ls /dev/fuse || ls /dev/kvm",
    ],
)
async def test_denied(agent: Agent, script: str) -> None:
    status, printed = await run(agent, shell(script))
    assert status.as_shell() != 0, printed
    await run_well(agent, ("/bin/id",))  # and the sandbox lives


async def test_conveniences(agent: Agent) -> None:
    """Every sandbox has these (design: sandboxes)."""
    assert "127.0.0.1 localhost" in await run_well(agent, ("/bin/cat", "/etc/hosts"))
    assert (await run_well(agent, ("/bin/hostname",))).strip() == "boxed"
    await run_well(agent, shell("echo x > /workspace/a && echo x > /tmp/a && echo x > /run/a && echo x > /etc/b"))
    assert (await run_well(agent, ("/bin/stat", "-c", "%a", "/tmp"))).strip() == "1777"
    assert "/dev/pts" in await run_well(agent, ("/bin/cat", "/proc/mounts"))
    assert "tmpfs" in await run_well(agent, shell("grep ' /dev/shm ' /proc/mounts; echo x > /dev/shm/x; echo tmpfs"))


async def test_the_agent_is_not_the_first_to_die(agent: Agent) -> None:
    """Nobody inside can tell the kernel to kill it first."""
    await run(agent, shell("for f in /proc/1/oom_score_adj /proc/1/task/*/oom_score_adj; do echo 1000 > $f; done"))
    (line,) = (line for line in descendants(os.getpid()) if line.endswith(" agent"))
    own = await trio.Path("/proc/self/oom_score_adj").read_text(encoding="ascii")
    assert await trio.Path("/proc", line.split()[0], "oom_score_adj").read_text(encoding="ascii") == own


async def test_devices_work(agent: Agent) -> None:
    await run_well(agent, shell("echo x > /dev/null && head -c 9 /dev/zero | wc -c && head -c 9 /dev/urandom | wc -c"))
    status, printed = await run(agent, shell("echo x > /dev/full"))
    assert status.as_shell() == 1
    assert "No space left" in printed
    process = await agent.spawn(
        ProcessSpec(argv=shell("echo hello > /dev/tty"), env={}, cwd="/", tty=TerminalSize(rows=24, cols=80))
    )
    said = b""
    while (output := await process.receive_output()) is not None:  # a terminal gives it in pieces
        said += output[1]
    assert said == b"hello\r\n"


@pytest.mark.parametrize("folder", ["/tmp", "/run", "/dev/shm"])
async def test_memory_file_systems_have_a_size(bench: Bench, mode: str, folder: str) -> None:
    async with bench.sandbox(bench.spec(limits=Limits(memory_mib=64)), mode=mode) as (_, agent):
        await run_well(agent, ("/bin/dd", "if=/dev/zero", f"of={folder}/some", "bs=1M", "count=16"))
        status, printed = await run(agent, ("/bin/dd", "if=/dev/zero", f"of={folder}/more", "bs=1M", "count=20"))
        assert status.as_shell() == 1
        assert "No space left" in printed


async def test_agent_gets_nothing_of_the_machine(agent: Agent) -> None:
    """Environment and descriptors of pid 1, seen from outside."""
    del agent
    (line,) = (line for line in descendants(os.getpid()) if line.endswith(" agent"))
    process = Path("/proc") / line.split()[0]
    assert (process / "environ").read_bytes().rstrip(b"\0").split(b"\0")[0].startswith(b"PATH=/usr/local/sbin")
    targets = {entry.name: str(entry.readlink()) for entry in (process / "fd").iterdir()}
    assert targets.pop("0") == "/dev/null"
    assert targets["1"].startswith("pipe:")
    assert targets.pop("2") == targets.pop("1")
    assert all(target.startswith(("socket:", "anon_inode:", "pipe:")) for target in targets.values()), targets


@pytest.fixture(scope="session")
def sysprobe_image(make_image: Callable[..., RootImage]) -> RootImage:
    source = Path(__file__).parent / "sysprobe.c"

    def arrange(root: Path) -> None:
        subprocess.run(["cc", "-static", "-O1", "-o", root / "bin/sysprobe", source], check=True)

    return make_image(arrange)


HARMLESS = (
    "getpid getuid gettid uname sched_yield times getcwd pipe2 dup close fstat mmap mprotect brk madvise futex "
    "nanosleep clock_gettime getrandom memfd_create eventfd2 epoll_create1 timerfd_create inotify_init1 socketpair "
    "connect bind wait4 kill tgkill prctl ptrace getrlimit prlimit64 seccomp landlock_create_ruleset pidfd_open "
    "openat2 statx copy_file_range rseq membarrier process_vm_readv shmget semget msgget mq_open capget capset setuid "
    "name_to_handle_at"
)
"""What programs need; with arguments of zero each fails in its own way, but for those that succeed."""


def kernel_numbers() -> dict[str, int]:
    """``__NR_*`` of this machine, from its C compiler."""
    command = ["cc", "-E", "-dM", "-include", "sys/syscall.h", "-x", "c", "/dev/null"]
    defined = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)\n", defined)}


async def test_system_calls(bench: Bench, sysprobe_image: RootImage, mode: str) -> None:
    column = {"x86_64": 0, "aarch64": 1}[os.uname().machine]
    denied = {name: row[column] for name, row in syscalls.DENIED.items() if row[column] is not None}
    known = kernel_numbers()
    allowed = {name: known[name] for name in HARMLESS.split() if name in known}
    assert len(allowed) > 40
    spec = bench.spec(image=sysprobe_image)
    async with bench.sandbox(spec, mode=mode) as (_, agent):

        async def probe(*what: str) -> dict[str, int]:
            printed = await run_well(agent, ("/bin/sysprobe", *what))
            return {name: int(number) for name, number in (line.split() for line in printed.splitlines())}

        assert await probe(*(f"{name}={number}" for name, number in denied.items())) == dict.fromkeys(
            denied, errno.EPERM
        )
        found = await probe(*(f"{name}={number}" for name, number in allowed.items()))
        assert found.keys() == allowed.keys()
        assert {name for name, error in found.items() if error in (errno.EPERM, errno.ENOSYS)} == set()
        assert await probe("--vsock", "--unix", "--tiocsti", "--newuser", "--clone3") == {
            "--vsock": errno.EAFNOSUPPORT,
            "--unix": 0,
            "--tiocsti": errno.EPERM,
            "--newuser": errno.EPERM,
            "--clone3": errno.ENOSYS,
        }
        if os.uname().machine == "x86_64":
            for foreign in ("--i386", "--x32"):
                status, printed = await run(agent, ("/bin/sysprobe", foreign))
                assert status.signal == 31, printed  # SIGSYS

"""What the sandbox conformance kit stands on: sandboxes a check can hold, and looks at the machine from outside."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import trio

from iii_core.project.locate import process_start_time
from iii_core.sandbox.agent import Agent, ExitStatus, ProcessSpec, open_agent
from iii_core.sandbox.port import Capability, Limits, RootImage, SandboxDriver, SandboxSpec

E = TypeVar("E", bound=Exception)

PATIENCE = 30.0
"""Seconds after which a check that waits has failed."""

SETTLING = 5.0
"""Seconds after which what is still there has been left."""

_FOREIGN_KINDS = frozenset({"autofs", "binfmt_misc", "fuse.gvfsd-fuse", "fuse.portal"})
_FOREIGN_PLACES = (
    "/media/",
    "/run/credentials/",
    "/run/docker/",
    "/run/snapd/",
    "/snap/",
    "/var/lib/containers/",
    "/var/lib/docker/",
)

MARK = "/workspace/mark"
"""A file that checks write."""

TESTS = "iii-tests"
"""The source that tests give file systems which they mount where everybody sees them."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """What checks run inside, as argv. The defaults need a POSIX shell and the usual small programs in ``/bin``.

    Attributes:
        write: (path, text) puts text into a file.
        read: (path) prints a file.
        user_id: prints the user id.
        allocate: (MiB) touches that much memory at once, and fails if it is not given.
        fork: (n) runs n processes at once, and fails if it is not allowed to.
        fill: (path, MiB) writes a file of that size, and fails if the disk is full.
        connect: (address, port) connects by TCP to an IPv4 address, and fails if it is not let in within some seconds.
        sleep: (seconds) does nothing for so long.
        random: prints something out of the kernel's random number generator.
        clock: prints the time of day in seconds since 1970.
    """

    write: Callable[[str, str], Sequence[str]] = lambda path, text: (
        "/bin/sh",
        "-c",
        'printf %s "$2" > "$1"',
        "sh",
        path,
        text,
    )
    read: Callable[[str], Sequence[str]] = lambda path: ("/bin/cat", path)
    user_id: Sequence[str] = ("/bin/id", "-u")
    allocate: Callable[[int], Sequence[str]] = lambda mib: (
        "/bin/dd",
        "if=/dev/zero",
        "of=/dev/null",
        f"bs={mib}M",
        "count=1",
    )
    fill: Callable[[str, int], Sequence[str]] = lambda path, mib: (
        "/bin/dd",
        "if=/dev/zero",
        f"of={path}",
        "bs=1M",
        f"count={mib}",
    )
    fork: Callable[[int], Sequence[str]] = lambda count: (
        "/bin/sh",
        "-c",
        f"i=0; while [ $i -lt {count} ]; do sleep 60 & i=$((i+1)); done; kill $(jobs -p)",
    )
    connect: Callable[[str, int], Sequence[str]] = lambda address, port: (
        "/bin/sh",
        "-c",
        'nc -w 5 "$1" "$2" < /dev/null',
        "sh",
        address,
        str(port),
    )
    sleep: Callable[[int], Sequence[str]] = lambda seconds: ("/bin/sleep", str(seconds))
    random: Sequence[str] = ("/bin/cat", "/proc/sys/kernel/random/uuid")
    clock: Sequence[str] = ("/bin/date", "+%s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What exists outside the sandboxes: what a check must leave as it found it."""

    processes: frozenset[str]
    descriptors: int
    mounts: frozenset[str]
    groups: frozenset[str]
    files: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxesUnderTest:
    """What the kit must be told.

    Attributes:
        open: opens the backend; called once or more per check.
        image: what to boot; has what ``commands`` need.
        folder: an empty folder for the sandboxes' files.
        capabilities: what the backend declares.
        commands: what to run inside.
    """

    open: Callable[[], AbstractAsyncContextManager[SandboxDriver]]
    image: RootImage
    folder: Path
    capabilities: frozenset[Capability]
    commands: Commands = field(default_factory=Commands)
    _ids: set[str] = field(default_factory=set[str], init=False, repr=False)

    def spec(self, sandbox_id: str = "one", limits: Limits | None = None) -> SandboxSpec:
        """A spec whose files are in `folder`."""
        self._ids.add(sandbox_id)
        return SandboxSpec(
            id=sandbox_id,
            root=self.image,
            writable_dir=self.folder / f"{sandbox_id[:64]}.layer",
            console=self.folder / f"{sandbox_id[:64]}.console",
            hostname="conformance",
            limits=limits or Limits(),
        )

    def snapshot(self) -> Snapshot:
        """What exists now."""
        return Snapshot(
            processes=frozenset(descendants(os.getpid())),
            descriptors=len(list(Path("/proc/self/fd").iterdir())),
            mounts=frozenset(Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()),
            groups=frozenset(control_groups()),
            files=frozenset(_paths_below(self.folder)),
        )

    def changed(self, before: Snapshot) -> list[str]:
        """What is not as it was, in words; empty where nothing is left.

        Others may remove what is theirs, and what had ended before may be reaped.
        """
        now = self.snapshot()
        new_groups = {group for group in now.groups - before.groups if self._may_be_ours(group)}
        new_mounts = {mount for mount in now.mounts - before.mounts if not is_foreign(mount, self._ids)}
        compared = (
            ("processes", before.processes, before.processes | now.processes),
            ("mounts", before.mounts, before.mounts | new_mounts),
            ("control groups", before.groups, before.groups | new_groups),
            ("files", before.files, now.files),
        )
        found = [
            f"{what}: new {sorted(is_ - was)}, gone {sorted(was - is_)}" for what, was, is_ in compared if is_ != was
        ]
        if now.descriptors != before.descriptors:
            found.append(f"{now.descriptors} open descriptors, not {before.descriptors}")
        return found

    def _may_be_ours(self, group: str) -> bool:
        """Whether its name, if it ends with a sandbox's id, ends with one of ours: another engine may have died."""
        parts = group.rpartition("/")[2].split(".", 4)
        return len(parts) < 5 or parts[4] in self._ids


def is_foreign(mount: str, ids: Collection[str]) -> bool:
    """Whether a line of ``mountinfo`` (proc_pid_mountinfo(5)) is one that a backend has no part in.

    The mount table is the whole machine's, and a mount says nothing of who made it. So all count but those that have an
    owner by convention: named network namespaces (ip-netns(8)), unless a sandbox of ours is in the name; what
    an automounter or a session of a user brings in; what container engines and package managers keep; and what tests
    beside this one have mounted by the name of `TESTS`.
    """
    fields, _, after = mount.partition(" - ")
    point, (kind, source, *_) = fields.split()[4], after.split()
    if kind == "nsfs" and point.startswith(("/run/netns/", "/var/run/netns/")):
        return not any(one in point.rpartition("/")[2] for one in ids)
    return kind in _FOREIGN_KINDS or source == TESTS or point.startswith(_FOREIGN_PLACES)


def descendants(root: int, *, zombies: bool = True) -> list[str]:
    """``pid name`` of all processes below one, also those that wait to be reaped; read from ``/proc``."""
    children: dict[int, list[tuple[int, str, bool]]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        name, _, rest = stat.partition("(")[2].rpartition(")")
        state, parent, *_ = rest.split()
        children.setdefault(int(parent), []).append((int(entry.name), name, state == "Z"))
    found: list[str] = []
    waiting = [root]
    while waiting:
        for pid, name, is_zombie in children.get(waiting.pop(), []):
            if zombies or not is_zombie:
                found.append(f"{pid} {name}")
            waiting.append(pid)
    return found


def control_groups() -> list[str]:
    """Control groups made by this program, by what it started, or by processes that are gone.

    They are called ``iii.<pid>…``, or ``iii.<pid>.<start time>.<pid namespace>.<sandbox id>``; one of another namespace
    is somebody else's.
    """
    namespace = str(Path("/proc/self/ns/pid").stat().st_ino)
    ours = {line.split()[0] for line in descendants(os.getpid())} | {str(os.getpid())}
    found: list[str] = []
    for path in _paths_below(Path("/sys/fs/cgroup")):
        prefix, owner, start, of, *_ = [*path.rpartition("/")[2].split("."), "", "", ""]
        if prefix != "iii" or not owner.isdecimal() or (of.isdecimal() and of != namespace):
            continue
        began = process_start_time(int(owner))
        is_dead = began is None or (start.isdecimal() and began != int(start))  # its number may be another's by now
        if is_dead or owner in ours:
            found.append(path)
    return found


def _paths_below(folder: Path) -> Iterator[str]:
    """All files and folders, except what goes away just now: others use the machine too."""
    for parent, folders, files in os.walk(folder):
        yield from (f"{parent}/{name}" for name in (*folders, *files))


@asynccontextmanager
async def nothing_left(under_test: SandboxesUnderTest) -> AsyncGenerator[None]:
    """The block leaves the machine as it was, a moment later at most."""
    before = under_test.snapshot()
    yield
    deadline = trio.current_time() + SETTLING
    while (left := under_test.changed(before)) and trio.current_time() < deadline:  # noqa: ASYNC110
        await trio.sleep(0.02)  # the kernel's own tidying has no event
    assert not left, "; ".join(left)


@asynccontextmanager
async def started(
    under_test: SandboxesUnderTest, spec: SandboxSpec | None = None
) -> AsyncGenerator[tuple[SandboxDriver, str]]:
    """An open backend with one running sandbox."""
    async with under_test.open() as driver:
        spec = spec or under_test.spec()
        await driver.create(spec)
        await driver.start(spec.id)
        yield driver, spec.id


@asynccontextmanager
async def agent_of(driver: SandboxDriver, sandbox_id: str, *, resync: bool = False) -> AsyncGenerator[Agent]:
    """Take the link of a running sandbox and talk to its agent; leaving ends the sandbox's agent.

    ``resync`` as for `open_agent`: another link came before.
    """
    link = await driver.link(sandbox_id)
    link.setblocking(False)
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(link))
    async with open_agent(stream, tunnel_ports=[], serve_tunnel=_refuse, resync=resync) as agent:
        yield agent


async def _refuse(stream: trio.abc.Stream) -> None:
    await stream.aclose()


def process(argv: Sequence[str], *, uid: int | None = None) -> ProcessSpec:
    """What starts a program of `Commands`."""
    return ProcessSpec(argv=argv, env={"PATH": PATH}, cwd="/", uid=uid, gid=uid)


async def run(agent: Agent, argv: Sequence[str], *, uid: int | None = None) -> tuple[ExitStatus, str]:
    """Run a program to its end; its status, and what it printed."""
    started = await agent.spawn(process(argv, uid=uid))
    printed = bytearray()
    while (output := await started.receive_output()) is not None:
        printed += output[1]
    return await started.wait(), printed.decode(errors="replace")


async def run_well(agent: Agent, argv: Sequence[str], *, uid: int | None = None) -> str:
    """As `run`; the program must succeed."""
    status, printed = await run(agent, argv, uid=uid)
    assert status.as_shell() == 0, f"{argv} ended with {status}: {printed}"
    return printed


async def expect_error(kind: type[E], act: Callable[[], Awaitable[object]]) -> E:
    """``act`` must raise ``kind``, within `PATIENCE`; returns the error."""
    try:
        with trio.fail_after(PATIENCE):
            await act()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised")


class _CancelAt(trio.abc.Instrument):
    """Cancels a scope when a task is about to take its n-th step."""

    def __init__(self, task: trio.lowlevel.Task, scope: trio.CancelScope, step: int) -> None:
        self._task = task
        self._scope = scope
        self._left = step

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


async def cancelled_at(step: int, act: Callable[[], Awaitable[object]]) -> bool:
    """Run ``act`` and cancel it where it waits for the ``step``-th time; whether it was still running then.

    What ``act`` itself raises comes out, as long as it is no cancellation.
    """
    with trio.CancelScope() as scope:
        instrument = _CancelAt(trio.lowlevel.current_task(), scope, step)
        trio.lowlevel.add_instrument(instrument)
        try:
            await act()
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return scope.cancelled_caught

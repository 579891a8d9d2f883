"""One sandbox: the image and its writable layer, mounted in a user namespace, and bwrap with the agent in there."""

import os
import shutil
from pathlib import Path

import trio
from iii_sandbox_guest import agent_path

from iii_core.records import OpenContext, ProbeResult
from iii_core.sandbox.console import Console
from iii_core.sandbox.launcher import Boot, Launcher
from iii_core.sandbox.port import SandboxSpec
from iii_core.sandbox.process_boot import launch_process

# Everything below `unshare` is in one process namespace, so nothing of it outlives its first process. It gets a /proc
# of its own: bwrap looks up its child there by number.
NAMESPACES = ("unshare", "--user", "--map-root-user", "--mount-proc", "--pid", "--fork", "--kill-child")
SET_UP = """
set -e
cd "$1"
mkdir -p lower root upper work
squashfuse_ll "$2" lower
mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work,userxattr overlay root
shift 2
bwrap "$@"
"""
BWRAP = (
    *("--bind", "root", "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/run", "--dir", "/workspace"),
    *("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--as-pid-1", "--new-session"),
    *("--cap-drop", "ALL", "--clearenv", "--chdir", "/", "--die-with-parent"),
)


class MineLauncher(Launcher):
    """What is particular to this backend; `open_launched` does the rest of what the port asks for."""

    name = "mine"
    capabilities = frozenset()

    def __init__(self, tmp_mib: int, context: OpenContext, nursery: trio.Nursery) -> None:
        self._tmp_bytes = tmp_mib << 20
        self._context = context
        self._nursery = nursery

    async def launch(self, spec: SandboxSpec, console: Console) -> Boot:
        """See `Launcher`."""
        tmp = ("--size", str(self._tmp_bytes), "--tmpfs", "/tmp")
        agent = ("--ro-bind", str(agent_path()), "/run/iii/agent", "--", "/run/iii/agent")
        inside = (*BWRAP, *tmp, "--hostname", spec.hostname, *agent)
        set_up = (*NAMESPACES, "sh", "-c", SET_UP, "sh", str(spec.writable_dir), str(spec.root.path))
        return await launch_process(
            lambda link: (*set_up, *inside, "--fd", str(link)),
            console,
            nursery=self._nursery,
            context=self._context,
            env={"PATH": self._context.environ.get("PATH", os.defpath)},
        )

    def unenforced(self, spec: SandboxSpec) -> tuple[str, ...]:
        """See `Launcher`: this backend has no limits, and says so where some are wanted."""
        limits = {"CPU": spec.limits.cpus, "memory": spec.limits.memory_mib, "process": spec.limits.pids}
        return tuple(f"{name} limit" for name, limit in limits.items() if limit is not None)

    async def remove(self, folder: Path) -> None:
        """See `Launcher`. The overlay leaves folders that only root may enter, of our namespace at least."""
        await trio.run_process(["unshare", "--user", "--map-root-user", "rm", "-rf", "--", str(folder)])


async def try_it(context: OpenContext) -> ProbeResult:
    """Do once what every boot does; that the programs are there says little."""
    for program in ("bwrap", "squashfuse_ll", "unshare"):
        if shutil.which(program, path=context.environ.get("PATH")) is None:
            return ProbeResult(ok=False, reason=f"{program} is not installed", hint=f"install {program}")
    command = [*NAMESPACES, "bwrap", "--ro-bind", "/", "/", "--unshare-net", "--cap-drop", "ALL", "true"]
    with trio.move_on_after(5):
        done = await trio.run_process(command, check=False, capture_stdout=True, capture_stderr=True)
        said = done.stderr.decode(errors="replace").strip()
        return ProbeResult(ok=done.returncode == 0, reason=said)
    return ProbeResult(ok=False, reason="bwrap does not answer")

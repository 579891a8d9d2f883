"""The processes that carry the traffic of sandboxes with network access out of their gates (`iii_sandbox_gate`)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iii_sandbox_gate.namespace import limit_uplink, uplink_argv

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass
class _Uplink:
    process: subprocess.Popen[bytes]
    console: int
    is_wanted: bool = True


class Uplinks:
    """Uplinks by the number of their boot. They end with the keeper, as everything does in its pid namespace."""

    def __init__(self) -> None:
        self._uplinks: dict[int, _Uplink] = {}

    def start(self, boot: int, uplink: Sequence[str], pid: int, *, ready: int, console: int) -> None:
        """Connect the network namespace of a process; one byte comes over ``ready`` when that is done.

        What the uplink says goes to ``console``. Raises ``OSError``.
        """
        process = subprocess.Popen(
            uplink_argv(uplink, f"/proc/{pid}/ns/net", ready=ready),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=console,
            pass_fds=(ready,),
            preexec_fn=limit_uplink,  # the keeper has no threads
        )
        self._uplinks[boot] = _Uplink(process, os.dup(console))

    def processes(self) -> set[int]:
        """Their process ids."""
        return {uplink.process.pid for uplink in self._uplinks.values()}

    def reaped(self, pid: int, status: int) -> bool:
        """Whether the reaped process was one of them; a sandbox that runs on is told on its console."""
        for boot, uplink in self._uplinks.items():
            if uplink.process.pid == pid:
                uplink.process.returncode = os.waitstatus_to_exitcode(status)
                if uplink.is_wanted:
                    with contextlib.suppress(OSError):
                        os.write(uplink.console, b"iii: this sandbox has no network any more: slirp4netns has ended\n")
                os.close(uplink.console)
                del self._uplinks[boot]
                return True
        return False

    def end(self, boot: int) -> bool:
        """Kill that of a boot; False until it has been reaped."""
        uplink = self._uplinks.get(boot)
        if uplink is None:
            return True
        uplink.is_wanted = False
        os.kill(uplink.process.pid, signal.SIGKILL)  # an unreaped child: its number cannot be anybody else's
        return False

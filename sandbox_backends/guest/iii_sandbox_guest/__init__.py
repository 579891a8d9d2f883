"""What sandboxes run inside, and what machines boot: the guest agent, kernel, initramfs, disk.

`agent_path` is the agent for every backend. Backends of virtual machines call `prepare_boot` and `create_data_disk`,
and attach what `iii_sandbox_guest.boot` names.
"""

from __future__ import annotations

from iii_sandbox_guest.agent_program import agent_path
from iii_sandbox_guest.boot import Needs
from iii_sandbox_guest.disk import create_data_disk
from iii_sandbox_guest.fetch import fetch_kernel
from iii_sandbox_guest.kernel import Kernel, find_kernel
from iii_sandbox_guest.prepare import BootFiles, prepare_boot

__all__ = [
    "BootFiles",
    "Kernel",
    "Needs",
    "agent_path",
    "create_data_disk",
    "fetch_kernel",
    "find_kernel",
    "prepare_boot",
]

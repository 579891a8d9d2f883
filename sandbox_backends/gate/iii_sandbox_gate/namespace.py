"""Making a gate from inside: the steps that a single-threaded process with rights over its namespaces takes.

Standard library only, and no event loop: backends call this in processes that they have forked.
"""

from __future__ import annotations

import resource
import subprocess
from typing import TYPE_CHECKING, Final

from iii_core.sandbox import linux

if TYPE_CHECKING:
    from collections.abc import Sequence

RULES_TIMEOUT = 10.0
READY_TIMEOUT = 10.0
"""Seconds that an uplink may take to come up."""
UPLINK_DESCRIPTORS: Final = 1024
"""An uplink has one for each connection, and for each UDP port that the sandbox sends from, which is a port of this
machine as well: of those there are 28 232 for everybody (``ip_local_port_range``, the kernel's ``ip-sysctl.rst``)."""


def enter_gate(nft: str, rules: str) -> None:
    """Move into a new network namespace, which has rules before it has any interface that is up.

    Whoever is to be kept by the rules must have no rights over the user namespace that this is called in: enter
    another one, or drop CAP_NET_ADMIN. Raises ``OSError``.
    """
    linux.unshare(linux.CLONE_NEWNET)
    try:
        done = subprocess.run(
            [nft, "-f", "-"],
            input=rules.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=RULES_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise OSError(
            f"the rules of the sandbox's network are refused: nft timed out after {RULES_TIMEOUT:g} s"
        ) from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise OSError(f"the rules of the sandbox's network are refused: nft: {said[0] if said else done.returncode}")
    linux.bring_up("lo")


def limit_uplink() -> None:
    """Bound what one sandbox takes of this machine's ports; in the process that becomes its uplink, before that."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = UPLINK_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, UPLINK_DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def uplink_argv(uplink: Sequence[str], namespace: str, *, ready: int, leave: int | None = None) -> list[str]:
    """The command line of an uplink (`iii_sandbox_gate.plan`).

    Args:
        uplink: program and options.
        namespace: path of the gate's network namespace, seen from the process that starts the uplink.
        ready: descriptor to write one byte to when the uplink is up.
        leave: descriptor whose end of file ends the uplink, if any.
    """
    leaving = [] if leave is None else [f"--exit-fd={leave}"]
    return [*uplink, f"--ready-fd={ready}", *leaving, "--netns-type=path", namespace, "tap0"]

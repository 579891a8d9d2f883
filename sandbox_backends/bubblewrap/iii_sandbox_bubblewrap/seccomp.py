"""The system call filter of sandboxes, assembled as classic BPF (``seccomp(2)``, ``linux/filter.h``).

A denial is EPERM, as if a right were missing, which programs are used to. It is a second wall: without capabilities
and without user namespaces most of these calls fail anyway. ``clone3`` fails with ENOSYS, upon which every libc uses
``clone``, whose flags a filter can see. System calls of another ABI (i386, x32) kill the process: their numbers mean
something else.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass

from iii_core.errors import BackendUnavailable
from iii_sandbox_bubblewrap import syscalls

_LD_W_ABS, _JEQ_K, _JGE_K, _JSET_K, _RET_K = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000  # SECCOMP_RET_*
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_X32_BIT = 0x40000000
_CLONE_NEWUSER = 0x10000000
_FORBIDDEN_IOCTLS = (0x5412, 0x541C)  # TIOCSTI types into the terminal, TIOCLINUX into the console
_SOCKET_FAMILIES = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK; AF_VSOCK, say, knows no network namespace

Instruction = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Architecture:
    """``audit`` is AUDIT_ARCH_* of ``linux/audit.h``; ``column`` is its place in `syscalls.Numbers`."""

    audit: int
    column: int


ARCHITECTURES = {"x86_64": Architecture(0xC000003E, 0), "aarch64": Architecture(0xC00000B7, 1)}


def filter_program(machine: str | None = None) -> bytes:
    """The filter for this machine (``os.uname().machine``), as an array of ``struct sock_filter``.

    Raises:
        BackendUnavailable: nobody has written down this architecture's system calls.
    """
    name = machine or os.uname().machine
    if name not in ARCHITECTURES:
        raise BackendUnavailable(
            f"the bubblewrap backend has no system call filter for {name}",
            hint=f"it knows {', '.join(ARCHITECTURES)}; use a virtual machine backend",
        )
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in _assemble(ARCHITECTURES[name]))


def _assemble(arch: Architecture) -> list[Instruction]:
    program = [
        (_LD_W_ABS, 0, 0, _ARCH),
        (_JEQ_K, 1, 0, arch.audit),
        (_RET_K, 0, 0, _KILL_PROCESS),
        (_LD_W_ABS, 0, 0, _NUMBER),
        (_JGE_K, 0, 1, _X32_BIT),
        (_RET_K, 0, 0, _KILL_PROCESS),
    ]
    for number in syscalls.DENIED.values():
        program += _on(number[arch.column], [_fail(errno.EPERM)])
    program += _on(syscalls.CLONE3[arch.column], [_fail(errno.ENOSYS)])
    program += _on(
        syscalls.CLONE[arch.column],
        [_argument(0), (_JSET_K, 0, 1, _CLONE_NEWUSER), _fail(errno.EPERM), _allow()],
    )
    program += _on(
        syscalls.IOCTL[arch.column],
        [_argument(1), *(step for code in _FORBIDDEN_IOCTLS for step in _if_equal(code, _fail(errno.EPERM))), _allow()],
    )
    program += _on(
        syscalls.SOCKET[arch.column],
        [
            _argument(0),
            *(step for family in _SOCKET_FAMILIES for step in _if_equal(family, _allow())),
            _fail(errno.EAFNOSUPPORT),
        ],
    )
    return [*program, _allow()]


def _on(number: int | None, body: list[Instruction]) -> list[Instruction]:
    """``body``, which must end in a return, for one system call."""
    return [] if number is None else [(_JEQ_K, 0, len(body), number), *body]


def _if_equal(value: int, then: Instruction) -> list[Instruction]:
    return [(_JEQ_K, 0, 1, value), then]


def _argument(index: int) -> Instruction:
    """Load the low half of an argument: the kernel takes all those we look at as 32 bits (little-endian)."""
    return (_LD_W_ABS, 0, 0, _ARGUMENTS + 8 * index)


def _fail(number: int) -> Instruction:
    return (_RET_K, 0, 0, _ERRNO | number)


def _allow() -> Instruction:
    return (_RET_K, 0, 0, _ALLOW)

"""The system call filter: its listing, and what it says about every system call of both architectures.

How the kernel takes it is `test_bubblewrap_isolation.test_system_calls`.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest
from iii_sandbox_bubblewrap import syscalls
from iii_sandbox_bubblewrap.seccomp import filter_program

from iii_core.errors import BackendUnavailable

from .bpf import decode, listing, verdict

GOLDEN = Path(__file__).parent / "golden"
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
COLUMN = {"x86_64": 0, "aarch64": 1}
HEADERS = {
    "x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h"),
    "aarch64": ("/usr/include/asm-generic/unistd.h",),
}
EPERM, ENOSYS, NO_FAMILY = f"errno {errno.EPERM}", f"errno {errno.ENOSYS}", f"errno {errno.EAFNOSUPPORT}"
machines = pytest.mark.parametrize("machine", ["x86_64", "aarch64"])


def number_of(name: str, machine: str) -> int:
    table = {
        **syscalls.DENIED,
        "clone": syscalls.CLONE,
        "clone3": syscalls.CLONE3,
        "ioctl": syscalls.IOCTL,
        "socket": syscalls.SOCKET,
    }
    number = table[name][COLUMN[machine]]
    assert number is not None
    return number


@machines
def test_golden(machine: str) -> None:
    assert listing(filter_program(machine)) == (GOLDEN / f"seccomp-{machine}.txt").read_text(encoding="ascii")


@machines
def test_every_system_call(machine: str) -> None:
    """By number, with all arguments zero: what is not on the list is allowed, but for the four special ones."""
    program = filter_program(machine)
    column = COLUMN[machine]
    expected = {number[column]: EPERM for number in syscalls.DENIED.values() if number[column] is not None}
    expected[number_of("clone3", machine)] = ENOSYS
    expected[number_of("socket", machine)] = NO_FAMILY  # AF_UNSPEC
    found = {number: verdict(program, AUDIT[machine], number) for number in range(1024)}
    assert {number: what for number, what in found.items() if what != "allow"} == expected


@machines
def test_other_abis_are_killed(machine: str) -> None:
    program = filter_program(machine)
    for arch in (0x40000003, *(audit for name, audit in AUDIT.items() if name != machine), 0):
        assert verdict(program, arch, 1) == "kill process"
    for number in (0x40000000, 0x40000001, 0x40000000 | 500, -1):
        assert verdict(program, AUDIT[machine], number) == "kill process"


@machines
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("clone", [0x01200011], "allow"),  # fork
        ("clone", [0x003D0F00], "allow"),  # a thread
        ("clone", [0x10000011], EPERM),
        ("clone", [0x7E020000], EPERM),
        ("clone", [0xFFFFFFFF_00000011], "allow"),  # the kernel looks at 32 bits, and so do we
        ("clone", [0xFFFFFFFF_10000011], EPERM),
        ("ioctl", [0, 0x5401], "allow"),  # TCGETS
        ("ioctl", [0, 0x5412], EPERM),
        ("ioctl", [0, 0xFFFFFFFF_00005412], EPERM),  # the upper half is no way around (CVE-2019-10063)
        ("ioctl", [0, 0x541C], EPERM),
        ("ioctl", [0x5412, 0], "allow"),
        *(("socket", [family], "allow") for family in (1, 2, 10, 16)),
        *(("socket", [family], NO_FAMILY) for family in (0, 3, 17, 29, 38, 40, 44, 0x8000)),
        ("socket", [0xFFFFFFFF_00000028], NO_FAMILY),
    ],
)
def test_arguments(machine: str, name: str, arguments: list[int], expected: str) -> None:
    assert verdict(filter_program(machine), AUDIT[machine], number_of(name, machine), arguments) == expected


@machines
def test_numbers_are_the_kernels(machine: str) -> None:
    """Against the headers of Linux that this machine has; calls newer or older than those are in no header."""
    header = next((Path(path) for path in HEADERS[machine] if Path(path).exists()), None)
    if header is None:
        pytest.skip(f"no header of {machine} here (linux-libc-dev)")
    text = header.read_text(encoding="utf-8")
    known = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\b", text)}
    assert len(known) > 250
    table = {**syscalls.DENIED, "clone": syscalls.CLONE, "clone3": syscalls.CLONE3, "ioctl": syscalls.IOCTL}
    table["socket"] = syscalls.SOCKET
    ours = {name: numbers[COLUMN[machine]] for name, numbers in table.items()}
    assert {name: ours[name] for name in ours.keys() & known.keys()} == {
        name: known[name] for name in ours.keys() & known.keys()
    }
    assert {name for name, number in ours.items() if number is not None} - known.keys() <= {"open_tree_attr"}


@machines
def test_what_the_kernel_takes(machine: str) -> None:
    """``seccomp_check_filter`` and ``bpf_check_classic``: at most 4096 steps, jumps within, a return at the end."""
    steps = decode(filter_program(machine))
    assert len(steps) <= 4096
    assert steps[-1].code == 0x06
    for at, step in enumerate(steps):
        if step.code not in (0x06, 0x20):
            assert at + 1 + max(step.if_true, step.if_false) < len(steps)


def test_unknown_machine() -> None:
    with pytest.raises(BackendUnavailable, match="riscv64") as caught:
        filter_program("riscv64")
    assert caught.value.hint
    assert caught.value.code == "W231"


def test_this_machine_is_the_default() -> None:
    assert filter_program() == filter_program(os.uname().machine)

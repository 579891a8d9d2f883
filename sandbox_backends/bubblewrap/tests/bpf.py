"""Classic BPF as the kernel runs it for seccomp: decoded, listed and executed apart from the assembler."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

ACTIONS = {0x7FFF0000: "allow", 0x80000000: "kill process", 0x00050000: "errno"}
FIELDS = {0: "number", 4: "arch"} | {
    16 + 8 * index + 4 * high: f"argument {index}{' high' * high}" for index in range(6) for high in (0, 1)
}
JUMPS = {0x15: "==", 0x35: ">=", 0x45: "&"}


@dataclass(frozen=True)
class Instruction:
    code: int
    if_true: int
    if_false: int
    value: int


def decode(program: bytes) -> list[Instruction]:
    """An array of ``struct sock_filter`` (``linux/filter.h``)."""
    return [Instruction(*fields) for fields in struct.iter_unpack("=HBBI", program)]


def listing(program: bytes) -> str:
    """One line per instruction, with absolute jump targets; falling through is not written."""
    return "".join(f"{at:3} {_text(at, step)}\n" for at, step in enumerate(decode(program)))


def _text(at: int, step: Instruction) -> str:
    if step.code == 0x20:
        return f"load {FIELDS[step.value]}"
    if step.code == 0x06:
        return f"return {_action(step.value)}"
    targets = {"yes": step.if_true, "no": step.if_false}
    jumps = ", ".join(f"{word} -> {at + 1 + distance}" for word, distance in targets.items() if distance)
    return f"{JUMPS[step.code]} {step.value:#x}: {jumps}"


def _action(value: int) -> str:
    action = ACTIONS[value & 0xFFFF0000]
    return f"{action} {value & 0xFFFF}" if action == "errno" else action


def verdict(program: bytes, arch: int, number: int, arguments: Sequence[int] = ()) -> str:
    """What the kernel would do with a system call, as in `listing`. Fails on what the kernel's checker would refuse."""
    data = struct.pack("=iIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    steps = decode(program)
    accumulator, at = 0, 0
    while True:
        step = steps[at]
        at += 1
        if step.code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, step.value)
        elif step.code == 0x06:
            return _action(step.value)
        else:
            holds = {"==": accumulator == step.value, ">=": accumulator >= step.value, "&": accumulator & step.value}
            at += step.if_true if holds[JUMPS[step.code]] else step.if_false

"""Bombs against the real building process: refused in seconds, at 64 MiB of memory beyond what it needs to start."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration

SECONDS = 5.0
SECONDS_FOR_A_MILLION = 25.0  # each of so many headers is read, about 7 µs on the machines this was written on
EXTRA_KIB = 64 * 1024


def header(name: bytes, size: int = 0) -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[124:136], block[156:157] = b"0000644\0", b"%011o\0" % size, b"0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def million_files(path: Path) -> None:
    """A million and one entries; gzip members are repeated so that making them is cheap."""
    names = random.Random(1)
    piece = gzip.compress(b"".join(header(b"%032x" % names.getrandbits(128)) for _ in range(10_000)), 1)
    with path.open("wb") as file:
        for _ in range(100):
            file.write(piece)
        file.write(gzip.compress(header(b"one more")))


def endless_zeros(path: Path) -> None:
    """Three gigabytes of zeros in one file of three megabytes."""
    piece = gzip.compress(bytes(64 << 20), 9)
    with path.open("wb") as file:
        file.write(gzip.compress(header(b"zeros", 3 << 30)))
        for _ in range(48):
            file.write(piece)


def endless_noise(path: Path) -> None:
    """A file that says it is larger than any may be."""
    path.write_bytes(gzip.compress(header(b"noise", 6 << 30) + os.urandom(100_000)))


def giant_pax(path: Path) -> None:
    block = bytearray(header(b"pax", 1 << 30))
    block[156:157], block[148:156] = b"x", b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    path.write_bytes(gzip.compress(bytes(block)) + gzip.compress(bytes(32 << 20)))


def empty_members(path: Path) -> None:
    path.write_bytes(gzip.compress(b"") * 300_000)


def build(tmp_path: Path, layers: list[Path]) -> tuple[dict[str, Any], float, int]:
    described = [
        {"path": str(path), "digest": f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}",
         "size": path.stat().st_size, "diff_id": "sha256:" + "0" * 64}
        for path in layers
    ]  # fmt: skip
    request = json.dumps({"layers": described, "output": str(tmp_path / "root.squashfs"), "limits": {}})
    process = subprocess.Popen(
        [sys.executable, "-m", "iii_registry_oci.layers.build"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    begun = time.monotonic()
    process.stdin.write(request)
    process.stdin.close()
    lines = process.stdout.read().splitlines()
    seconds = time.monotonic() - begun
    process.stdout.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return json.loads(lines[-1]), seconds, usage.ru_maxrss


@pytest.mark.parametrize("make", [million_files, endless_zeros, endless_noise, giant_pax, empty_members])
def test_bombs(tmp_path: Path, make: Any) -> None:
    calm, bomb = tmp_path / "calm", tmp_path / "bomb"
    calm.write_bytes(gzip.compress(b"not a tar archive" * 100))
    make(bomb)
    _, _, start = build(tmp_path, [calm])
    answer, seconds, most = build(tmp_path, [bomb])
    assert answer["error"]["kind"] in ("ImageUnsafe", "DigestMismatch")
    assert seconds < (SECONDS_FOR_A_MILLION if make is million_files else SECONDS)
    assert most - start < EXTRA_KIB
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bomb", "calm"]

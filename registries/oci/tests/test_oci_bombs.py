"""Bombs against the real building process: refused for little work, at 64 MiB of memory beyond what it needs to start.

The work is processor time, as a multiple of what the same process needs to refuse a small archive.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration

TIMES = 120
EXTRA_KIB = 64 * 1024


def header(name: bytes, size: int = 0) -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[124:136], block[156:157] = b"0000644\0", b"%011o\0" % size, b"0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def million_files(path: Path) -> str:
    """A million and one entries; gzip members are repeated so that making them is cheap."""
    names = random.Random(1)
    plain = b"".join(header(b"%032x" % names.getrandbits(128)) for _ in range(10_000))
    piece, last = gzip.compress(plain, 1), header(b"one more")
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(100):
            file.write(piece)
            digest.update(plain)
        file.write(gzip.compress(last))
    digest.update(last)
    return digest.hexdigest()


def endless_zeros(path: Path) -> str:
    """Three gigabytes of zeros in one file of three megabytes."""
    piece = gzip.compress(bytes(64 << 20), 9)
    with path.open("wb") as file:
        file.write(gzip.compress(header(b"zeros", 3 << 30)))
        for _ in range(48):
            file.write(piece)
    return "0" * 64  # nobody reads that far


def endless_noise(path: Path) -> str:
    """A file that says it is larger than any may be."""
    return pack(path, header(b"noise", 6 << 30) + os.urandom(100_000))


def giant_pax(path: Path) -> str:
    block = bytearray(header(b"pax", 1 << 30))
    block[156:157], block[148:156] = b"x", b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return pack(path, bytes(block) + bytes(32 << 20))


def records(path: Path) -> str:
    """Extended headers full of the shortest records there are."""
    data = b"5 a=\n" * 100_000
    block = bytearray(header(b"pax", len(data)))
    block[156:157], block[148:156] = b"g", b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return pack(path, (bytes(block) + data + bytes(-len(data) % 512)) * 200)


def empty_members(path: Path) -> str:
    path.write_bytes(gzip.compress(b"") * 300_000)
    return "0" * 64


def pack(path: Path, plain: bytes) -> str:
    path.write_bytes(gzip.compress(plain))
    return hashlib.sha256(plain).hexdigest()


def build(tmp_path: Path, layer: Path, diff_id: str) -> tuple[dict[str, Any], float, int]:
    digest, size = hashlib.sha256(layer.read_bytes()).hexdigest(), layer.stat().st_size
    described = {"path": str(layer), "digest": f"sha256:{digest}", "size": size, "diff_id": f"sha256:{diff_id}"}
    request = json.dumps({"layers": [described], "output": str(tmp_path / "root.squashfs"), "limits": {}, "user": ""})
    process = subprocess.Popen(
        [sys.executable, "-m", "iii_registry_oci.layers.build"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(request)
    process.stdin.close()
    lines = process.stdout.read().splitlines()
    process.stdout.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return json.loads(lines[-1]), usage.ru_utime + usage.ru_stime, usage.ru_maxrss


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (million_files, "ImageUnsafe"),
        (endless_zeros, "ImageUnsafe"),
        (endless_noise, "ImageUnsafe"),
        (giant_pax, "ImageUnsafe"),
        (records, "ImageUnsafe"),
        (empty_members, "DigestMismatch"),
    ],
)
def test_bombs(tmp_path: Path, make: Any, kind: str) -> None:
    calm, bomb = tmp_path / "calm", tmp_path / "bomb"
    calm.write_bytes(gzip.compress(b"not a tar archive" * 100))
    _, unit, start = build(tmp_path, calm, "0" * 64)
    answer, seconds, most = build(tmp_path, bomb, make(bomb))
    assert answer["error"]["kind"] == kind
    assert seconds < TIMES * unit
    assert most - start < EXTRA_KIB
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bomb", "calm"]

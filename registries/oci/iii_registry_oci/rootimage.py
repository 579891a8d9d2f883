"""Building a root image in its own process (`iii_registry_oci.layers.build`)."""

from __future__ import annotations

import base64
import json
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from iii_core import errors
from iii_core.images.port import ImageUser
from iii_registry_oci.process import read_bounded, running

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from iii_registry_oci.layers.blob import Layer
    from iii_registry_oci.layers.limits import Limits

STALL_SECONDS = 120  # without a sign of progress
STDERR_MAX = 16 * 1024
_KINDS = (errors.ImageUnsafe, errors.DigestMismatch, errors.StorageFull, errors.SpawnError, errors.ImageError)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltRoot:
    """What the image says by its files: ``/iii/worker.yaml``, and whom its ``User`` means (None: it is unknown)."""

    hints: bytes | None
    user: ImageUser | None


async def build_root(
    layers: Sequence[Layer],
    output: Path,
    *,
    user: str,
    limits: Limits,
    environ: Mapping[str, str],
    moved: Callable[[int], None],
) -> BuiltRoot:
    """Merge ``layers`` (base first) into the squashfs image ``output``; ``user`` is the ``User`` of its configuration.

    ``moved`` is told the bytes read so far: the layers' sizes in the end. Cancelling leaves an incomplete ``output``.

    Raises:
        ImageUnsafe, DigestMismatch, StorageFull, SpawnError, ImageError: as the building process says.
    """
    request = {
        "layers": [{**asdict(layer), "path": str(layer.path)} for layer in layers],
        "output": str(output),
        "user": user,
        "limits": asdict(limits),
    }
    command = [sys.executable, "-m", "iii_registry_oci.layers.build"]
    said: list[bytes] = []
    answer: dict[str, Any] | None = None
    environment = {"PATH": environ.get("PATH", "/usr/bin:/bin"), "PYTHONPATH": ":".join(filter(None, sys.path))}
    async with running(command, env=environment, cwd=output.parent, install="Python") as process:
        stdin, stdout, stderr = process.stdin, process.stdout, process.stderr
        assert stdin is not None
        assert stdout is not None
        assert stderr is not None

        async def collect() -> None:
            said.append(await read_bounded(stderr, STDERR_MAX))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(collect)
            try:
                await stdin.send_all(json.dumps(request).encode())
                await stdin.aclose()
            except trio.BrokenResourceError:
                pass  # it died; its status says so
            answer = await _follow(stdout, moved)
            if answer is None:
                process.kill()
            await process.wait()
    return _outcome(answer, process.returncode, b"".join(said))


async def _follow(stdout: trio.abc.ReceiveStream, moved: Callable[[int], None]) -> dict[str, Any] | None:
    """Read the lines; gives the last one that is not progress ({} if there is none), or None when nothing comes."""
    pending = bytearray()
    answer: dict[str, Any] = {}
    while True:
        try:
            with trio.fail_after(STALL_SECONDS):
                data = await stdout.receive_some(65536)
        except trio.TooSlowError:
            return None
        if not data:
            return answer
        pending += data
        *lines, pending = pending.split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "moved" in message:
                moved(message["moved"])
            else:
                answer = message


def _outcome(answer: Mapping[str, Any] | None, status: int | None, stderr: bytes) -> BuiltRoot:
    if answer is None:
        raise errors.ImageError(f"Building the root image made no progress for {STALL_SECONDS} seconds")
    if "result" in answer:
        hints, user = answer["result"]["hints"], answer["result"]["user"]
        return BuiltRoot(
            hints=None if hints is None else base64.b64decode(hints), user=msgspec.convert(user, ImageUser | None)
        )
    if "error" in answer:
        error = answer["error"]
        kind = next((kind for kind in _KINDS if kind.__name__ == error["kind"]), errors.ImageError)
        raise kind(error["message"], hint=error["hint"], details=error["details"])
    text = stderr.decode(errors="backslashreplace").strip()[-1000:]
    raise errors.ImageError(f"Building the root image failed ({status}): {text}")

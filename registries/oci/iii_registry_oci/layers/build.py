"""The program that turns layers into a squashfs image: ``python -m iii_registry_oci.layers.build``.

It is a process of its own because reading headers by the ten thousand would hold up an event loop, because its memory
can be bounded, and because killing its process group cancels it at any point, ``sqfstar`` included.

One JSON object on stdin: ``layers`` (as `Layer`), ``output``, ``limits`` (as `Limits`), ``user`` (as the image's
configuration has it). JSON lines on stdout: ``{"moved": BYTES}`` …, then ``{"result": {…}}`` or ``{"error": {…}}`` with
the name of an error of `iii_core.errors`.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from iii_core.errors import IIIError, ImageError, SpawnError, StorageFull
from iii_registry_oci import accounts
from iii_registry_oci.layers.blob import Layer
from iii_registry_oci.layers.entry import Entry
from iii_registry_oci.layers.limits import FULL, MIB, Limits
from iii_registry_oci.layers.merge import Merged, merge

if TYPE_CHECKING:
    from collections.abc import Callable

MEMORY = 3 * 1024 * MIB  # address space of this process and of sqfstar, each
SQFSTAR_MEMORY = "256M"
REPORT_EVERY = 4 * MIB
HINTS = b"iii/worker.yaml"
HINTS_MAX = 64 * 1024
WANTED = {HINTS: HINTS_MAX, accounts.PASSWD: accounts.FILE_MAX, accounts.GROUP: accounts.FILE_MAX}


class SquashFS:
    """``sqfstar`` writing one image from the tar archive it is sent.

    The same archive gives the same image, unless it has a time in the future.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._stderr: IO[bytes] = os.fdopen(os.memfd_create("stderr"), "w+b")  # not on a disk that may be full
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self, root: Entry, newest: int) -> Callable[[bytes], object]:
        """Start it, with the root directory's metadata; gives where to write the archive.

        sqfstar 4.5.1 gives the root directory the time of day, whatever ``-root-time`` says, unless
        ``SOURCE_DATE_EPOCH`` bounds all times; set to the latest one of the archive it bounds nothing else.
        """
        command = [*_as_owner(root), "sqfstar", "-comp", "lz4", "-no-progress", "-quiet", "-exit-on-error"]
        command += ["-mem", SQFSTAR_MEMORY, "-root-mode", f"{root.mode:o}"]
        try:
            self._process = subprocess.Popen(
                [*command, str(self._output)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                bufsize=MIB,
                env={**os.environ, "SOURCE_DATE_EPOCH": str(newest)},
            )
        except FileNotFoundError:
            raise SpawnError("sqfstar is not installed", hint="install squashfs-tools 4.5 or newer") from None
        assert self._process.stdin is not None
        return self._process.stdin.write

    def finish(self) -> None:
        """Close the archive and wait for the image. Raises `StorageFull`, `ImageError`."""
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # its exit status says why
            self._process.stdin.close()
        status = self._process.wait()
        if status:
            self._stderr.seek(0)
            raise self._failure(status, self._stderr.read(4096).decode(errors="backslashreplace").strip())

    def _failure(self, status: int, said: str) -> IIIError:
        if status == -25 or any(os.strerror(number) in said for number in FULL):  # SIGXFSZ
            return StorageFull(f"No space is left for the root image {self._output.name}", hint="free some disk space")
        return ImageError(f"sqfstar failed ({status}): {said[-1000:]}")


def _as_owner(root: Entry) -> list[str]:
    """What runs sqfstar as the owner of the root directory, in a user namespace of its own.

    sqfstar 4.5.1 gives that directory to whoever runs it, whatever ``-root-uid`` says, and leaves its entry out. Where
    user namespaces are not allowed it stays so.
    """
    if (root.uid, root.gid) == (os.geteuid(), os.getegid()):
        return []
    command = ["unshare", "--user", f"--map-user={root.uid}", f"--map-group={root.gid}", "--"]
    try:
        allowed = subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return []
    return command if allowed else []


def main() -> None:
    """Do what stdin says."""
    request: dict[str, Any] = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        answer: dict[str, Any] = {"result": build(request, _Reporter(sys.stdout))}
    except IIIError as error:
        answer = {"error": _describe(error)}
    except MemoryError:
        answer = {"error": _describe(ImageError("The image has too many files for the memory it may take"))}
    except OSError as error:
        told = f"Building the root image failed: {error.strerror}"
        full = error.errno in FULL
        answer = {"error": _describe(StorageFull(told, hint="free some disk space") if full else ImageError(told))}
    print(json.dumps(answer), flush=True)


def build(request: dict[str, Any], report: Callable[[int], None]) -> dict[str, Any]:
    """Build the image that ``request`` asks for; gives what `main` prints."""
    layers = [Layer(path=Path(layer.pop("path")), **layer) for layer in request["layers"]]
    output = Path(request["output"])
    squashfs = SquashFS(output)
    try:
        merged = merge(
            layers,
            limits=Limits(**request["limits"]),
            scratch=output.parent,
            moved=report,
            begin=squashfs.begin,
            wanted=WANTED,
        )
    except BrokenPipeError:
        squashfs.finish()  # tells why sqfstar gave up
        raise
    squashfs.finish()
    return _result(merged, request["user"])


def _result(merged: Merged, user: str) -> dict[str, Any]:
    hints = merged.files.get(HINTS)
    found = accounts.resolve_user(user, merged.files.get(accounts.PASSWD, b""), merged.files.get(accounts.GROUP, b""))
    return {
        "entries": merged.entries,
        "data": merged.data,
        "left_out": merged.left_out,
        "hints": None if hints is None else base64.b64encode(hints).decode(),
        "user": found and asdict(found),
    }


def _describe(error: IIIError) -> dict[str, Any]:
    return {
        "kind": type(error).__name__,
        "message": error.message,
        "hint": error.hint,
        "details": error.details,
    }


class _Reporter:
    """Reports bytes, a few megabytes at a time; several threads may call it."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._moved = self._reported = 0
        self._lock = threading.Lock()

    def __call__(self, moved: int) -> None:
        with self._lock:
            self._moved += moved
            if self._moved - self._reported >= REPORT_EVERY:
                self._reported = self._moved
                print(json.dumps({"moved": self._moved}), file=self._stream, flush=True)


if __name__ == "__main__":
    main()

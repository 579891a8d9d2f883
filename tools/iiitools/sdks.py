"""The published SDKs that the tests run as clients, unmodified, each in a folder of its own below ``build/sdks``.

``python -m iiitools.sdks`` installs what is missing and does nothing else; the tests call `install` themselves. A
folder is complete when its marker holds the hash of everything it was made from. What the SDKs depend on is pinned in
``tests/integration/sdk``; no lock file is kept, because those name the hosts that they were resolved from.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "sdks"
PINS = ROOT / "tests" / "integration" / "sdk"

WEB_CRYPTO = "--experimental-global-webcrypto"
"""Lets Node.js 18 have the global ``crypto`` that the SDKs use, and that Node.js 20 has by itself."""

_ATTEMPTS = 3
_TIMEOUT = 600


class InstallFailed(Exception):
    """An SDK could not be installed; the text holds the tail of the installer's output."""


@dataclass(frozen=True, slots=True)
class Sdk:
    """One release of the SDK for one language."""

    language: Literal["python", "node"]
    version: str

    @property
    def label(self) -> str:
        """Such as ``python-0.25.0``."""
        return f"{self.language}-{self.version}"

    @property
    def folder(self) -> Path:
        """A virtual environment, or the folder that holds ``node_modules``."""
        return FOLDER / self.label

    @property
    def generation(self) -> tuple[int, ...]:
        """The version as numbers, to compare."""
        return tuple(int(part) for part in self.version.split("."))

    @property
    def interpreter(self) -> str:
        """The program that runs scripts against this SDK."""
        return str(self.folder / "bin" / "python") if self.language == "python" else "node"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that programs need to run against this SDK on this machine."""
        return {"NODE_OPTIONS": WEB_CRYPTO} if self.language == "node" and _node_major() < 20 else {}


SDKS = (
    Sdk("python", "0.25.0"),
    Sdk("python", "0.21.8"),
    Sdk("python", "0.19.7"),
    Sdk("python", "0.11.6"),
    Sdk("node", "0.22.1"),
    Sdk("node", "0.11.6"),
)


def install(sdks: Sequence[Sdk] = SDKS) -> None:
    """Install what is missing. Safe to call from several processes at once, and quick when all is there.

    Raises:
        InstallFailed: an installer failed three times, or a program for it is missing.
    """
    if all(_is_complete(sdk) for sdk in sdks):
        return
    with _locked():
        for sdk in sdks:
            if not _is_complete(sdk):
                _install(sdk)


def _install(sdk: Sdk) -> None:
    print(f"sdks: installing {sdk.label}", file=sys.stderr, flush=True)
    shutil.rmtree(sdk.folder, ignore_errors=True)
    sdk.folder.mkdir(parents=True)
    if sdk.language == "python":
        _install_python(sdk)
    else:
        _install_node(sdk)
    _marker(sdk).write_text(_key(sdk))


def _install_python(sdk: Sdk) -> None:
    wanted = ["--constraint", str(PINS / "python" / "constraints.txt"), f"iii-sdk=={sdk.version}"]
    uv = shutil.which("uv") or str(ROOT / ".tools" / "uv" / "bin" / "uv")
    if Path(uv).exists():
        _run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(sdk.folder)])
        _run([uv, "pip", "install", "--quiet", "--python", sdk.interpreter, *wanted])
    else:
        _run([sys.executable, "-m", "venv", "--clear", str(sdk.folder)])
        _run([sdk.interpreter, "-m", "pip", "install", "--quiet", *wanted])


def _install_node(sdk: Sdk) -> None:
    if shutil.which("npm") is None:
        raise InstallFailed("npm is not on PATH; install Node.js 18 or newer")
    shutil.copy(_package_file(sdk), sdk.folder / "package.json")
    # No package here needs its install scripts; esbuild's only checks that its binary, a package of its own, is there.
    _run(["npm", "install", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=sdk.folder)


@cache
def _node_major() -> int:
    done = subprocess.run(["node", "--version"], capture_output=True, text=True, timeout=60, check=True)
    return int(done.stdout.removeprefix("v").split(".")[0])


def _run(command: Sequence[str], *, cwd: Path | None = None) -> None:
    output = ""
    for attempt in range(1, _ATTEMPTS + 1):
        done = subprocess.run(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
        if done.returncode == 0:
            return
        output = done.stdout
        print(f"sdks: {command[0]} failed (attempt {attempt} of {_ATTEMPTS})", file=sys.stderr, flush=True)
    raise InstallFailed(f"{' '.join(command)} failed:\n{output[-2000:]}")


def _package_file(sdk: Sdk) -> Path:
    return PINS / "node" / sdk.version / "package.json"


def _marker(sdk: Sdk) -> Path:
    return sdk.folder / ".complete"


def _key(sdk: Sdk) -> str:
    pins = PINS / "python" / "constraints.txt" if sdk.language == "python" else _package_file(sdk)
    made_from = [sdk.label, pins.read_text()]
    if sdk.language == "python":
        made_from.append(sys.version)
    return hashlib.sha256("\0".join(made_from).encode()).hexdigest()


def _is_complete(sdk: Sdk) -> bool:
    try:
        return _marker(sdk).read_text() == _key(sdk)
    except FileNotFoundError:
        return False


@contextmanager
def _locked() -> Generator[None, None, None]:
    FOLDER.mkdir(parents=True, exist_ok=True)
    handle = os.open(FOLDER / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def main() -> int:
    """Install everything; prints what it installs, and why it could not."""
    try:
        install()
    except InstallFailed as error:
        print(f"sdks: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

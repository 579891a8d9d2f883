"""`connection: session` and `connection: system`: a libvirtd, started for the test in folders of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from iii_core.sandbox.host_processes import ProcessId
from iii_core.sandbox.port import RootImage

from .ordinarykit import USER, run_kit
from .vmkit import HERE, TCG, python

pytestmark = [
    pytest.mark.integration,
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else, and start the machine's daemon"),
]


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody can enter: pytest's own are private to root."""
    folder = Path(tempfile.mkdtemp(prefix="iii-vm-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_session(image: RootImage, kernel: Path, public: Path) -> None:
    environ = {"HOME": str(public / "user")}
    for name in ("RUNTIME_DIR", "CONFIG_HOME", "CACHE_HOME", "DATA_HOME"):
        environ[f"XDG_{name}"] = str(public / "user" / name)
        (public / "user" / name).mkdir(parents=True, mode=0o700)
        os.chown(public / "user" / name, USER, USER)
    os.chown(public / "user", USER, USER)
    (public / "kit").mkdir()
    checks = ["check_is_ordinary", "check_ends_with_its_host", "check_lifecycle", "check_egress"]
    try:
        found = run_kit(image.path, public / "kit", checks, {**TCG, "connection": "session"}, environ)
        assert found == dict.fromkeys(checks)
    finally:  # libvirt started it, and would leave it running for two minutes
        for file in public.rglob("libvirtd.pid"):
            with suppress(ValueError):
                daemon = ProcessId.of(int(file.read_text(encoding="ascii")))
                assert daemon is None or daemon.kill()


@pytest.fixture
def daemon(public: Path) -> Iterator[str]:
    """The URI of a libvirtd like the machine's own."""
    config = public / "libvirtd.conf"
    config.write_text(f'unix_sock_dir = "{public}"\nauth_unix_rw = "none"\n', encoding="ascii")
    with (public / "log").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "--mount", *python(HERE / "daemonrunner.py", config, public / "pid")],
            stdin=subprocess.DEVNULL,
            stderr=log,
        )
    try:
        wait: list[str | Path] = ["sh", "-c", 'until [ -S "$0" ]; do sleep 0.05; done', public / "libvirt-sock"]
        subprocess.run(wait, timeout=60, check=True)
        yield f"qemu+unix:///system?socket={public}/libvirt-sock"
    finally:
        process.terminate()
        process.wait(60)


def run_as_root(image: Path, folder: Path, home: Path, uri: str, checks: list[str]) -> dict[str, str | None]:
    arguments: tuple[str | Path, ...] = (image, home, folder, json.dumps({**TCG, "connection": uri}), *checks)
    done = subprocess.run(
        python(HERE / "kitrunner.py", *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=560,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["check"]: line["problem"] for line in lines}


@pytest.mark.parametrize(
    "checks",
    [["check_ends_with_its_host", "check_lifecycle", "check_mounts"], ["check_egress"]],
    ids=["kit", "network"],
)
def test_system(image: RootImage, kernel: Path, public: Path, daemon: str, checks: list[str]) -> None:
    """What QEMU's user must be able to read is given to it here, as whoever configures this has to."""
    home = public / "home"
    shutil.copytree(kernel, home / "kernels" / kernel.name, symlinks=True)
    shutil.copy(image.path, public / "image.squashfs")
    own = public / "kit"
    own.mkdir(mode=0o711)
    found = run_as_root(public / "image.squashfs", own, home, daemon, checks)
    assert found == dict.fromkeys(checks)


def test_system_with_private_files(image: RootImage, kernel: Path, public: Path, daemon: str, tmp_path: Path) -> None:
    """The image is in a folder of root's alone: what to do is said, instead of QEMU's "Permission denied"."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    home = public / "home"
    shutil.copytree(kernel, home / "kernels" / kernel.name, symlinks=True)
    shutil.copy(image.path, private / "image.squashfs")
    (public / "kit").mkdir(mode=0o711)
    found = run_as_root(private / "image.squashfs", public / "kit", home, daemon, ["check_lifecycle"])
    problem = found["check_lifecycle"] or ""
    assert "libvirt-qemu may not read" in problem
    assert "keeps it out" in problem

"""Some of the conformance kit as user 65534, with libvirt embedded: no daemon, no root, nothing set up for it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from iii_core.sandbox.port import RootImage

from .ordinarykit import run_kit
from .vmkit import TCG

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else; run the kit itself instead"),
]


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody can enter: pytest's own are private to root."""
    folder = Path(tempfile.mkdtemp(prefix="iii-vm-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.long
def test_embedded(image: RootImage, kernel: Path, public: Path) -> None:
    checks = ["check_is_ordinary", "check_lifecycle", "check_kill_from_outside_is_reported"]
    assert run_kit(image.path, public, checks, TCG) == dict.fromkeys(checks)


@pytest.mark.long
def test_network(image: RootImage, kernel: Path, public: Path) -> None:
    """Where everybody may open /dev/net/tun, as on most machines."""
    checks = ["check_is_ordinary", "check_egress", "check_no_network"]
    assert run_kit(image.path, public, checks, TCG) == dict.fromkeys(checks)


def test_the_machines_daemon_is_for_root(image: RootImage, kernel: Path, public: Path) -> None:
    checks = ["check_no_system"]
    assert run_kit(image.path, public, checks, {**TCG, "connection": "system"}) == dict.fromkeys(checks)

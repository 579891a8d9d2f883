"""A listener with TLS in config.yaml, and ``iii trigger`` as its client: real certificates, real programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from iiitools.certificates import Authority

if TYPE_CHECKING:
    from conftest import IIIProject

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

LIST = ("trigger", "engine::workers::list")


@pytest.fixture
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def secured(project: IIIProject, authority: Authority) -> IIIProject:
    """A project whose one listener speaks TLS."""
    certificate = authority.issue("DNS:localhost", "IP:127.0.0.1")
    for path in (certificate.cert, certificate.key):
        (project.folder / path.name).write_bytes(path.read_bytes())
    tls = f"tls: {{cert: {certificate.cert.name}, key: {certificate.key.name}}}"
    project.config.write_text(f"workers:\n  - name: iii-worker-manager\n    config: {{port: {project.port}, {tls}}}\n")
    return project


def test_the_command_calls_over_tls(secured: IIIProject, authority: Authority) -> None:
    secured.start()
    assert f"engine ready on wss://127.0.0.1:{secured.port}" in secured.engine_log()
    secured.environ["SSL_CERT_FILE"] = str(authority.path)
    for options in ((), ("--address", f"wss://localhost:{secured.port}"), ("--address", "localhost")):
        assert "workers" in json.loads(secured.ok(*LIST, *options))


def test_without_the_authority_the_command_says_what_to_do(secured: IIIProject) -> None:
    secured.start()
    done = secured.run(*LIST)
    assert done.returncode == 1
    assert b"W205" in done.stderr
    assert b"SSL_CERT_FILE" in done.stderr


def test_an_engine_without_its_key_does_not_start(secured: IIIProject) -> None:
    key = next(secured.folder.glob("issued-*.key"))
    key.unlink()
    done = secured.run()
    assert done.returncode == 1
    assert b"W205" in done.stderr
    assert key.name.encode() in done.stderr
    assert Path(secured.folder / "config.yaml").exists()

"""From an ``iii-worker-manager`` entry of config.yaml to a listener."""

from __future__ import annotations

from pathlib import Path

import pytest

from iii_core.app.settings import engine_config
from iii_core.engine import ListenerConfig, TlsFiles
from iii_core.errors import ConfigError, UnknownKey
from iii_core.project.config import load_config
from iii_core.project.locate import locate_project


def listeners(folder: Path, config: str, **environ: str) -> tuple[ListenerConfig, ...]:
    project = locate_project(cwd=folder, environ=environ)
    project.config_path.write_text(f"workers:\n  - name: iii-worker-manager\n    config: {config}\n")
    return engine_config(load_config(project), environ, {}, project.root).listeners


def test_paths_of_certificates_are_relative_to_the_project(tmp_path: Path) -> None:
    (listener,) = listeners(
        tmp_path, "{port: 0, tls: {cert: tls/chain.pem, key: '${KEYS}/listener.key'}}", KEYS="/keys"
    )
    assert listener.tls == TlsFiles(cert=tmp_path / "tls" / "chain.pem", key=Path("/keys/listener.key"))


def test_without_tls(tmp_path: Path) -> None:
    assert listeners(tmp_path, "{port: 0}")[0].tls is None


@pytest.mark.parametrize(
    ("config", "error", "text"),
    [
        ("{tls: {cert: a.pem}}", ConfigError, "key"),
        ("{tls: {cert: a.pem, key: b.pem, ca: c.pem}}", ConfigError, "ca"),
        ("{tls: a.pem}", ConfigError, "tls"),
        ("{tsl: {cert: a.pem, key: b.pem}}", UnknownKey, "tsl"),
    ],
)
def test_wrong_settings(tmp_path: Path, config: str, error: type[ConfigError], text: str) -> None:
    with pytest.raises(error, match=text):
        listeners(tmp_path, config)

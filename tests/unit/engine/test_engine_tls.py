"""What a listener cannot prove itself with is an error that names the file and says what to do."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iii_core.engine import EngineConfig, ListenerConfig, TlsFiles, open_engine
from iii_core.engine.tls import server_context
from iii_core.errors import ConfigError, TlsError
from iii_core.testing.memory_transport import MemoryNetwork, MemoryPlugins
from iiitools.certificates import Authority, Certificate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def certificate(folder: Path) -> Certificate:
    return Authority(folder).issue("DNS:localhost")


def encrypted(certificate: Certificate, path: Path) -> Path:
    command: list[str | Path] = [
        "openssl",
        "pkey",
        "-in",
        certificate.key,
        "-aes256",
        "-passout",
        "pass:secret",
        "-out",
        path,
    ]
    subprocess.run(command, check=True, timeout=30, capture_output=True)
    return path


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_good_files(certificate: Certificate) -> None:
    assert server_context(TlsFiles(cert=certificate.cert, key=certificate.key)).get_ca_certs() == []


CASES: list[tuple[str, Callable[[Certificate, Path], TlsFiles], str]] = [
    ("no-cert", lambda c, p: TlsFiles(cert=p / "absent.pem", key=c.key), "absent.pem for TLS: No such file"),
    ("no-key", lambda c, p: TlsFiles(cert=c.cert, key=p / "absent.key"), "absent.key for TLS: No such file"),
    ("folder", lambda c, p: TlsFiles(cert=p, key=c.key), "Is a directory"),
    ("no-pem", lambda c, p: TlsFiles(cert=written(p / "x.pem", "hello"), key=c.key), "not PEM files"),
    ("empty", lambda c, p: TlsFiles(cert=c.cert, key=written(p / "x.key", "")), "not PEM files"),
    ("swapped", lambda c, p: TlsFiles(cert=c.key, key=c.cert), "cannot use the certificate"),
    ("other-key", lambda c, p: TlsFiles(cert=c.cert, key=c.cert.parent / "ca.key"), "do not belong together"),
    ("encrypted", lambda c, p: TlsFiles(cert=c.cert, key=encrypted(c, p / "e.key")), "the key for TLS is encrypted"),
]


@pytest.mark.parametrize(("files", "text"), [pytest.param(f, text, id=name) for name, f, text in CASES])
def test_files_of_no_use(
    certificate: Certificate, tmp_path: Path, files: Callable[[Certificate, Path], TlsFiles], text: str
) -> None:
    with pytest.raises(TlsError, match=text) as caught:
        server_context(files(certificate, tmp_path))
    assert caught.value.code == "W205"
    assert caught.value.hint
    assert "secret" not in str(caught.value)


async def test_an_engine_does_not_open_without_its_certificate(tmp_path: Path) -> None:
    files = TlsFiles(cert=tmp_path / "absent.pem", key=tmp_path / "absent.key")
    listener = ListenerConfig(port=0, transport="memory", tls=files)
    with pytest.raises(TlsError, match=r"absent\.pem"):
        async with open_engine(EngineConfig(listeners=(listener,)), plugins=MemoryPlugins(MemoryNetwork())):
            raise AssertionError("must not open")


async def test_a_listener_goes_on_when_its_new_certificate_is_of_no_use(open_bench: Any, tmp_path: Path) -> None:
    async with open_bench() as bench:
        worker = await bench.worker()
        files = TlsFiles(cert=tmp_path / "absent.pem", key=tmp_path / "absent.key")
        other = ListenerConfig(port=0, transport="memory", host="127.0.0.2", tls=files)
        with pytest.raises(TlsError):
            await bench.engine.apply(EngineConfig(listeners=(ListenerConfig(port=0, transport="memory"), other)))
        await worker.settle()
        assert len(bench.engine.addresses) == 1


async def test_a_transport_without_tls_says_so(certificate: Certificate) -> None:
    files = TlsFiles(cert=certificate.cert, key=certificate.key)
    listener = ListenerConfig(port=0, transport="memory", tls=files)
    with pytest.raises(ConfigError, match="no TLS"):
        async with open_engine(EngineConfig(listeners=(listener,)), plugins=MemoryPlugins(MemoryNetwork())):
            raise AssertionError("must not open")

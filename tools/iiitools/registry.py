"""A real registry on loopback for tests, demos and benchmarks: Debian's ``docker-registry``."""

from __future__ import annotations

import base64
import ctypes
import http.client
import json
import os
import re
import secrets
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from iiitools.waiting import wait_until

START_SECONDS = 60
STOP_SECONDS = 5
ANSWER_SECONDS = 60
PUSH_SECONDS = 120

_LISTENING = re.compile(r"listening on (127\.0\.0\.1:\d+)")


@dataclass(frozen=True, slots=True)
class Registry:
    """A running registry.

    Attributes:
        address: ``127.0.0.1:PORT``; a reference is ``f"{address}/name:tag"``.
        certificate: the certificate to trust (``SSL_CERT_FILE``) if it speaks TLS.
        credentials: user and password if it wants some.
        log: the lines it wrote so far, access log included.
    """

    address: str
    certificate: Path | None = None
    credentials: tuple[str, str] | None = field(default=None, repr=False)
    log: list[str] = field(default_factory=list[str], repr=False)

    def push(self, layout: Path, tag: str, name: str) -> str:
        """Copy ``tag`` of the image layout ``layout`` here as ``name`` (``math-worker:1.0``); all platforms, unchanged.

        Returns the reference to pull. Raises `subprocess.CalledProcessError` with skopeo's words in ``stderr``.
        """
        reference = f"{self.address}/{name}"
        with tempfile.TemporaryDirectory() as folder:
            auth = Path(folder, "auth.json")
            auth.write_text(json.dumps(self.auth_file()))
            command = ["skopeo", "--insecure-policy", "copy", "--quiet", "--all", "--preserve-digests"]
            command += [f"--dest-authfile={auth}", f"--dest-tls-verify={str(self.certificate is not None).lower()}"]
            command += [f"oci:{layout}:{tag}", f"docker://{reference}"]
            environment = {**os.environ, **self.trust()}
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=PUSH_SECONDS, env=environment)
        return reference

    def auth_file(self) -> dict[str, object]:
        """The content of an auth file (``~/.docker/config.json``) that opens this registry."""
        if self.credentials is None:
            return {"auths": {}}
        token = base64.b64encode(":".join(self.credentials).encode()).decode()
        return {"auths": {self.address: {"auth": token}}}

    def trust(self) -> Mapping[str, str]:
        """The environment that makes a Go or OpenSSL client trust this registry's certificate."""
        return {} if self.certificate is None else {"SSL_CERT_FILE": str(self.certificate)}

    def requests(self) -> list[str]:
        """The access log: one line for each request answered so far.

        The registry writes a line after it has answered, and we read it some time later; so a request of our own is
        made, and waited for to be logged.
        """
        mark = f"mark={secrets.token_hex(8)}"
        connection = self._connect()
        with closing(connection):
            connection.request("GET", f"/v2/?{mark}")
            connection.getresponse().read()
        wait_until(lambda: any(mark in line for line in self.log), told=lambda: self.log[-5:])
        return [line for line in self.log if ('"GET ' in line or '"HEAD ' in line) and "/v2/?mark=" not in line]

    def _connect(self) -> http.client.HTTPConnection:
        if self.certificate is None:
            return http.client.HTTPConnection(self.address, timeout=ANSWER_SECONDS)
        trusted = ssl.create_default_context(cafile=self.certificate)
        return http.client.HTTPSConnection(self.address, timeout=ANSWER_SECONDS, context=trusted)


@contextmanager
def run_registry(
    directory: Path, *, credentials: tuple[str, str] | None = None, tls: bool = False, port: int = 0
) -> Generator[Registry]:
    """Serve the registry whose content is in ``directory`` on loopback for the scope's time.

    Args:
        directory: its storage, kept; an empty folder is an empty registry.
        credentials: demand this user and password (htpasswd).
        tls: speak HTTPS with a certificate made for the purpose, else plain HTTP.
        port: 0 takes a free one.

    Raises:
        RuntimeError: it did not answer in time; the text holds what it said.
    """
    directory.mkdir(parents=True, exist_ok=True)
    certificate = _make_certificate(directory) if tls else None
    config = directory / "registry.json"  # JSON is YAML
    config.write_text(json.dumps(_configuration(directory, credentials, certificate, port)))
    process = subprocess.Popen(
        ["docker-registry", "serve", str(config)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "OTEL_TRACES_EXPORTER": "none"},
    )
    log: list[str] = []
    address: list[str] = []
    ready = threading.Event()
    reader = threading.Thread(target=_read_log, args=(process, log, address, ready), daemon=True)
    reader.start()
    try:
        ready.wait(START_SECONDS)
        if not address:
            raise RuntimeError(f"docker-registry did not start within {START_SECONDS} s: {''.join(log[-5:])}")
        yield Registry(address[0], certificate, credentials, log)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(STOP_SECONDS)


def _configuration(
    directory: Path, credentials: tuple[str, str] | None, certificate: Path | None, port: int
) -> dict[str, object]:
    http: dict[str, object] = {"addr": f"127.0.0.1:{port}", "secret": secrets.token_hex(16)}
    if certificate is not None:
        http["tls"] = {"certificate": str(certificate), "key": str(certificate.with_suffix(".key"))}
    config: dict[str, object] = {
        "version": "0.1",
        "log": {"level": "info", "fields": {"service": "registry"}},
        "storage": {"filesystem": {"rootdirectory": str(directory / "data")}, "delete": {"enabled": True}},
        "http": http,
    }
    if credentials is not None:
        htpasswd = directory / "htpasswd"
        htpasswd.write_text(f"{credentials[0]}:{_bcrypt(credentials[1])}\n")
        config["auth"] = {"htpasswd": {"realm": "iii", "path": str(htpasswd)}}
    return config


def _read_log(process: subprocess.Popen[str], log: list[str], address: list[str], ready: threading.Event) -> None:
    """Drain the process's output for as long as it runs; say when it listens (or will never)."""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            log.append(line)
            found = _LISTENING.search(line)
            if found and not address:
                address.append(found[1])
                ready.set()
    ready.set()


def _make_certificate(directory: Path) -> Path:
    certificate = directory / "tls.crt"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "7",
    ]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-keyout", str(certificate.with_suffix(".key")), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True, timeout=START_SECONDS)
    return certificate


def _bcrypt(password: str) -> str:
    """The only hash that docker-registry takes, from the C library's crypt(3)."""
    crypt = ctypes.CDLL("libcrypt.so.1").crypt
    crypt.restype = ctypes.c_char_p
    salt = "".join(
        secrets.choice("./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789") for _ in range(22)
    )
    hashed: bytes | None = crypt(password.encode(), f"$2b$04${salt}".encode())
    if not hashed or not hashed.startswith(b"$2b$"):
        raise RuntimeError("libcrypt.so.1 has no bcrypt")
    return hashed.decode()

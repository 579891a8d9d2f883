"""A registry on loopback that says whatever a test wants it to."""

from __future__ import annotations

import gzip
import hashlib
import json
import platform
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

from iiitools.certificates import Certificate
from iiitools.ocilayout import tar_layer

OCI = "application/vnd.oci.image."
Answer: TypeAlias = tuple[int, dict[str, str], bytes]
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


class Server:
    """Answers each path with a function, and remembers what it was asked; with a certificate it speaks TLS."""

    def __init__(self, certificate: Certificate | None = None) -> None:
        self.answers: dict[str, Callable[[], Answer]] = {}
        self.asked: list[tuple[str, str | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                server.asked.append((path, self.headers.get("Authorization")))
                status, headers, body = server.answers.get(path, lambda: (404, {}, b"{}"))()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    with suppress(OSError):  # who asked had enough
                        self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        if certificate is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(certificate.cert, certificate.key)
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self.address = f"127.0.0.1:{self._http.server_port}"
        self.answers["/v2/"] = lambda: (200, {}, b"{}")
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


class Goods:
    """An honest image, and how to serve it; tests replace what they lie about."""

    def __init__(self, server: Server) -> None:
        self.server = server
        tar = tar_layer({"a": b"data" * 1000})
        self.layer = gzip.compress(tar, mtime=0)
        rootfs = {"type": "layers", "diff_ids": [digest_of(tar)]}
        self.config = json.dumps(
            {"os": "linux", "architecture": _MACHINES[platform.machine()], "config": {}, "rootfs": rootfs}
        ).encode()
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": f"{OCI}manifest.v1+json",
                "config": describe(self.config, f"{OCI}config.v1+json"),
                "layers": [describe(self.layer, f"{OCI}layer.v1.tar+gzip")],
            }
        ).encode()
        self.source = f"{server.address}/w:1"
        self.serve_manifest(self.manifest, "1", digest_of(self.manifest))
        for blob in (self.config, self.layer):
            self.blob(blob, partial(_found, blob))

    def blob(self, blob: bytes, answer: Callable[[], Answer]) -> None:
        """Answer requests for a blob."""
        self.server.answers[f"/v2/w/blobs/{digest_of(blob)}"] = answer

    def serve_manifest(self, body: bytes, *names: str, kind: str = f"{OCI}manifest.v1+json") -> None:
        """Answer requests for a manifest by its tag or digest."""
        for name in names:
            self.server.answers[f"/v2/w/manifests/{name}"] = lambda: (200, {"Content-Type": kind}, body)


def _found(blob: bytes) -> Answer:
    return 200, {}, blob


def digest_of(data: bytes) -> str:
    """``sha256:…``"""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def describe(data: bytes, kind: str) -> dict[str, Any]:
    """A descriptor."""
    return {"mediaType": kind, "digest": digest_of(data), "size": len(data)}

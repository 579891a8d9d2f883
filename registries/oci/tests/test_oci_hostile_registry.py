"""Registries that lie, through the real skopeo: a stable error, nothing stored, and no secret sent elsewhere."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trio
from iii_registry_oci import skopeo
from iii_registry_oci.manifest import host_platform

from iii_core.errors import DigestMismatch, ImageError, ImageUnsafe, RegistryAuthError, RegistryUnreachable
from iiitools.ocilayout import tar_layer

pytestmark = pytest.mark.integration
OCI = "application/vnd.oci.image."
SECRET = "canary-5ec2e7"
Answer = tuple[int, dict[str, str], bytes]


class Server:
    """Answers each path with a function, and remembers what it was asked."""

    def __init__(self) -> None:
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
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self.address = f"127.0.0.1:{self._http.server_port}"
        self.answers["/v2/"] = lambda: (200, {}, b"{}")
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def servers() -> Iterator[Callable[[], Server]]:
    opened: list[Server] = []

    def start() -> Server:
        opened.append(Server())
        return opened[-1]

    yield start
    for server in opened:
        server.close()


class Goods:
    """An honest image, and how to serve it; tests replace what they lie about."""

    def __init__(self, server: Server) -> None:
        self.server = server
        tar = tar_layer({"a": b"data" * 1000})
        self.layer = gzip.compress(tar, mtime=0)
        rootfs = {"type": "layers", "diff_ids": [digest_of(tar)]}
        platform = host_platform()
        self.config = json.dumps(
            {"os": platform.os, "architecture": platform.architecture, "config": {}, "rootfs": rootfs}
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
            self.blob(blob, lambda blob=blob: (200, {}, blob))

    def blob(self, blob: bytes, answer: Callable[[], Answer]) -> None:
        self.server.answers[f"/v2/w/blobs/{digest_of(blob)}"] = answer

    def serve_manifest(self, body: bytes, *names: str, kind: str = f"{OCI}manifest.v1+json") -> None:
        for name in names:
            self.server.answers[f"/v2/w/manifests/{name}"] = lambda: (200, {"Content-Type": kind}, body)


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def describe(data: bytes, kind: str) -> dict[str, Any]:
    return {"mediaType": kind, "digest": digest_of(data), "size": len(data)}


@pytest.fixture
def goods(servers: Any) -> Goods:
    return Goods(servers())


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skopeo, "BACKOFF_SECONDS", (0.01, 0.01))


async def refused(
    open_store: Any, home: Path, source: str, *kinds: type[ImageError], environ: Any = None
) -> ImageError:
    """Fetch what must be refused; the store stays empty."""
    async with open_store(environ) as images:
        with trio.fail_after(20), pytest.raises(kinds) as caught:
            await images.fetch(source, refresh=False, progress=lambda _: None)
    left = [path for path in (home / "images").rglob("*") if path.is_file() and path.parent.name != "locks"]
    assert left == []
    assert list((home / "images/staging").iterdir()) == []
    assert str(caught.value).isprintable()
    assert SECRET not in f"{caught.value} {caught.value.hint} {caught.value.details}"
    return caught.value


async def test_the_honest_image_is_taken(goods: Goods, open_store: Any) -> None:
    async with open_store() as images:
        assert (await images.fetch(goods.source, refresh=False, progress=lambda _: None)).digest == digest_of(
            goods.manifest
        )


@pytest.mark.parametrize(
    "lie",
    [
        lambda layer: layer[:-1],
        lambda layer: layer + b"x",
        lambda layer: layer[:50] + bytes([layer[50] ^ 1]) + layer[51:],
        lambda _layer: b"",
    ],
    ids=["cut", "longer", "other bytes", "empty"],
)
async def test_other_bytes(goods: Goods, open_store: Any, home: Path, lie: Callable[[bytes], bytes]) -> None:
    goods.blob(goods.layer, lambda: (200, {}, lie(goods.layer)))
    await refused(open_store, home, goods.source, DigestMismatch, RegistryUnreachable)


async def test_another_configuration(goods: Goods, open_store: Any, home: Path) -> None:
    goods.blob(goods.config, lambda: (200, {}, goods.config.replace(b"{}", b"{ }")))
    await refused(open_store, home, goods.source, DigestMismatch)


async def test_another_manifest_than_the_pinned_one(goods: Goods, open_store: Any, home: Path) -> None:
    pinned = "sha256:" + "1" * 64
    goods.serve_manifest(goods.manifest, pinned)
    await refused(open_store, home, f"{goods.server.address}/w@{pinned}", DigestMismatch)


async def test_a_tag_that_moves_between_the_look_and_the_copy(goods: Goods, open_store: Any) -> None:
    """What was looked at is what is copied: by digest."""
    manifests = iter([goods.manifest])
    changed = goods.manifest.replace(b'"schemaVersion": 2', b'"schemaVersion":  2')
    goods.server.answers["/v2/w/manifests/1"] = lambda: (
        200,
        {"Content-Type": f"{OCI}manifest.v1+json"},
        next(manifests, changed),
    )
    async with open_store() as images:
        image = await images.fetch(goods.source, refresh=False, progress=lambda _: None)
    assert image.digest == digest_of(goods.manifest)


async def test_an_endless_layer(goods: Goods, open_store: Any, home: Path) -> None:
    goods.blob(goods.layer, lambda: (200, {}, bytes(64 << 20)))
    await refused(open_store, home, goods.source, DigestMismatch)


async def test_a_huge_manifest(goods: Goods, open_store: Any, home: Path) -> None:
    goods.serve_manifest(goods.manifest.ljust(6 << 20), "1")
    await refused(open_store, home, goods.source, ImageError)


async def test_a_foreign_layer_is_not_fetched(goods: Goods, servers: Any, open_store: Any, home: Path) -> None:
    elsewhere = servers()
    document = json.loads(goods.manifest)
    document["layers"][0]["urls"] = [f"http://{elsewhere.address}/layer"]
    goods.serve_manifest(json.dumps(document).encode(), "1")
    await refused(open_store, home, goods.source, ImageUnsafe)
    assert elsewhere.asked == []


@pytest.mark.parametrize(
    "kind", [f"{OCI}index.v1+json", "text/html", "application/vnd.docker.distribution.manifest.v1+json"]
)
async def test_a_lie_about_the_kind_is_harmless_or_refused(goods: Goods, open_store: Any, kind: str) -> None:
    goods.serve_manifest(goods.manifest, "1", digest_of(goods.manifest), kind=kind)
    async with open_store() as images:
        try:
            image = await images.fetch(goods.source, refresh=False, progress=lambda _: None)
        except ImageError:
            return
    assert image.digest == digest_of(goods.manifest)


async def test_an_index_of_indexes(goods: Goods, open_store: Any, home: Path) -> None:
    kind = f"{OCI}index.v1+json"
    platform = {"os": "linux", "architecture": host_platform().architecture}
    inner = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": []}).encode()
    entry = {**describe(inner, kind), "platform": platform}
    outer = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": [entry]}).encode()
    goods.serve_manifest(outer, "1", kind=kind)
    goods.serve_manifest(inner, digest_of(inner), kind=kind)
    await refused(open_store, home, goods.source, ImageUnsafe)


@pytest.mark.parametrize("status", [500, 503])
async def test_what_fails_for_a_moment_is_tried_three_times(
    goods: Goods, open_store: Any, home: Path, status: int
) -> None:
    goods.server.answers["/v2/w/manifests/1"] = lambda: (status, {}, b"{}")
    error = await refused(open_store, home, goods.source, RegistryUnreachable)
    assert error.details["transient"]
    assert len([path for path, _ in goods.server.asked if path.endswith("/manifests/1")]) >= 3


async def test_a_stall_ends(goods: Goods, open_store: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skopeo, "STALL_SECONDS", 0.5)
    waiting = threading.Event()

    def stall() -> Answer:
        waiting.wait(10)
        return 500, {}, b""

    goods.blob(goods.layer, stall)
    error = await refused(open_store, home, goods.source, RegistryUnreachable)
    waiting.set()
    assert "no answer" in str(error)


async def test_credentials_do_not_follow_a_redirect(
    goods: Goods, servers: Any, open_store: Any, tmp_path: Path
) -> None:
    elsewhere = servers()
    elsewhere.answers["/blob"] = lambda: (200, {}, goods.layer)
    goods.blob(goods.layer, lambda: (307, {"Location": f"http://{elsewhere.address}/blob"}, b""))
    challenge = {"WWW-Authenticate": 'Basic realm="x"'}
    goods.server.answers["/v2/"] = lambda: (401, challenge, b"{}")
    token = base64.b64encode(f"user:{SECRET}".encode()).decode()
    auth = tmp_path / "auth.json"
    auth.write_text(json.dumps({"auths": {goods.server.address: {"auth": token}}}))
    async with open_store({"REGISTRY_AUTH_FILE": str(auth)}) as images:
        await images.fetch(goods.source, refresh=False, progress=lambda _: None)
    assert (f"/v2/w/blobs/{digest_of(goods.layer)}", f"Basic {token}") in goods.server.asked
    assert elsewhere.asked
    assert all(sent is None for _, sent in elsewhere.asked)


async def test_a_realm_elsewhere_gets_no_credentials_it_was_not_given(
    goods: Goods, servers: Any, open_store: Any, home: Path
) -> None:
    """Without credentials for the registry there is nothing to send; with some, the token protocol trusts its realm."""
    elsewhere = servers()
    elsewhere.answers["/token"] = lambda: (403, {}, b"{}")
    realm = f'Bearer realm="http://{elsewhere.address}/token",service="x"'
    goods.server.answers["/v2/"] = lambda: (401, {"WWW-Authenticate": realm}, b"{}")
    await refused(open_store, home, goods.source, RegistryAuthError, ImageError)
    assert all(sent is None for _, sent in elsewhere.asked)


async def test_words_of_a_registry_are_shown_safely(goods: Goods, open_store: Any, home: Path) -> None:
    said = json.dumps({"errors": [{"code": "DENIED", "message": "\x1b[2J\nyou won", "detail": ""}]}).encode()
    goods.server.answers["/v2/w/manifests/1"] = lambda: (403, {"Content-Type": "application/json"}, said)
    await refused(open_store, home, goods.source, RegistryAuthError)

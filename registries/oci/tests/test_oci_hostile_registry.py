"""Registries that lie, through the real skopeo: a stable error, nothing stored, and no secret sent elsewhere."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from iii_registry_oci import skopeo
from iii_registry_oci.manifest import host_platform

from iii_core.errors import DigestMismatch, ImageError, ImageUnsafe, RegistryAuthError, RegistryUnreachable
from iiitools.lyingregistry import OCI, Answer, Goods, describe, digest_of

pytestmark = pytest.mark.integration
SECRET = "canary-5ec2e7"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skopeo, "BACKOFF_SECONDS", (0.01, 0.01))


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
async def test_other_bytes(goods: Goods, refused: Any, lie: Callable[[bytes], bytes]) -> None:
    goods.blob(goods.layer, lambda: (200, {}, lie(goods.layer)))
    await refused(goods.source, DigestMismatch, RegistryUnreachable)


async def test_another_configuration(goods: Goods, refused: Any) -> None:
    goods.blob(goods.config, lambda: (200, {}, goods.config.replace(b"{}", b"{ }")))
    await refused(goods.source, DigestMismatch)


async def test_another_manifest_than_the_pinned_one(goods: Goods, refused: Any) -> None:
    pinned = "sha256:" + "1" * 64
    goods.serve_manifest(goods.manifest, pinned)
    await refused(f"{goods.server.address}/w@{pinned}", DigestMismatch)


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


async def test_an_endless_layer(goods: Goods, refused: Any) -> None:
    goods.blob(goods.layer, lambda: (200, {}, bytes(64 << 20)))
    await refused(goods.source, DigestMismatch)


async def test_a_huge_manifest(goods: Goods, refused: Any) -> None:
    goods.serve_manifest(goods.manifest.ljust(6 << 20), "1")
    await refused(goods.source, ImageError)


async def test_a_foreign_layer_is_not_fetched(goods: Goods, servers: Any, refused: Any) -> None:
    elsewhere = servers()
    document = json.loads(goods.manifest)
    document["layers"][0]["urls"] = [f"http://{elsewhere.address}/layer"]
    goods.serve_manifest(json.dumps(document).encode(), "1")
    await refused(goods.source, ImageUnsafe)
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


async def test_an_index_of_indexes(goods: Goods, refused: Any) -> None:
    kind = f"{OCI}index.v1+json"
    platform = {"os": "linux", "architecture": host_platform().architecture}
    inner = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": []}).encode()
    entry = {**describe(inner, kind), "platform": platform}
    outer = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": [entry]}).encode()
    goods.serve_manifest(outer, "1", kind=kind)
    goods.serve_manifest(inner, digest_of(inner), kind=kind)
    await refused(goods.source, ImageUnsafe)


@pytest.mark.parametrize("status", [500, 503])
async def test_what_fails_for_a_moment_is_tried_three_times(goods: Goods, refused: Any, status: int) -> None:
    goods.server.answers["/v2/w/manifests/1"] = lambda: (status, {}, b"{}")
    error = await refused(goods.source, RegistryUnreachable)
    assert error.details["transient"]
    assert len([path for path, _ in goods.server.asked if path.endswith("/manifests/1")]) >= 3


async def test_a_stall_ends(goods: Goods, refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skopeo, "STALL_SECONDS", 0.5)
    waiting = threading.Event()

    def stall() -> Answer:
        waiting.wait(10)
        return 500, {}, b""

    goods.blob(goods.layer, stall)
    error = await refused(goods.source, RegistryUnreachable)
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


async def test_a_realm_elsewhere_gets_no_credentials_it_was_not_given(goods: Goods, servers: Any, refused: Any) -> None:
    """Without credentials for the registry there is nothing to send; with some, the token protocol trusts its realm."""
    elsewhere = servers()
    elsewhere.answers["/token"] = lambda: (403, {}, b"{}")
    realm = f'Bearer realm="http://{elsewhere.address}/token",service="x"'
    goods.server.answers["/v2/"] = lambda: (401, {"WWW-Authenticate": realm}, b"{}")
    await refused(goods.source, RegistryAuthError, ImageError)
    assert all(sent is None for _, sent in elsewhere.asked)


async def test_words_of_a_registry_are_shown_safely(goods: Goods, refused: Any) -> None:
    said = json.dumps({"errors": [{"code": "DENIED", "message": "\x1b[2J\nyou won", "detail": ""}]}).encode()
    goods.server.answers["/v2/w/manifests/1"] = lambda: (403, {"Content-Type": "application/json"}, said)
    await refused(goods.source, RegistryAuthError)

"""What a hostile registry can make skopeo fetch from elsewhere, and what of it nobody gets to see.

A registry may name any address as its token service or as the place of a blob, and skopeo asks there: so it can make
this machine send a GET to services that only this machine reaches. What must hold is that no credentials go along that
were not meant for it, that no answer is shown, stored or sent on, and that nobody else's insecure settings apply.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from iii_registry_oci import skopeo

from iii_core.errors import DigestMismatch, ImageError, RegistryUnreachable
from iiitools.certificates import Authority
from iiitools.lyingregistry import Goods, Server, digest_of

pytestmark = pytest.mark.integration
SECRET = "canary-5ec2e7"
METADATA = json.dumps({"AccessKeyId": "canary-id", "Token": "canary-token"}).encode()
TEXT = b"canary-text of a service that only this machine reaches"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skopeo, "BACKOFF_SECONDS", (0.01, 0.01))


@pytest.fixture
def inside(servers: Callable[..., Server]) -> Server:
    """A service of this machine that trusts whoever reaches it, such as a cloud's metadata service."""
    server = servers()
    server.answers["/json"] = lambda: (200, {"Content-Type": "application/json"}, METADATA)
    server.answers["/text"] = lambda: (200, {}, TEXT)
    server.answers["/denied"] = lambda: (403, {}, TEXT)
    return server


def auth_file(tmp_path: Path, *addresses: str) -> dict[str, str]:
    token = base64.b64encode(f"user:{SECRET}".encode()).decode()
    auth = tmp_path / "auth.json"
    auth.write_text(json.dumps({"auths": {address: {"auth": token} for address in addresses}}))
    return {"REGISTRY_AUTH_FILE": str(auth)}


@pytest.mark.parametrize("path", ["/json", "/text", "/denied"])
async def test_what_a_realm_answers_is_not_shown(goods: Goods, inside: Server, refused: Any, path: str) -> None:
    realm = f'Bearer realm="http://{inside.address}{path}",service="x"'
    goods.server.answers["/v2/"] = lambda: (401, {"WWW-Authenticate": realm}, b"{}")
    goods.server.answers["/v2/w/manifests/1"] = lambda: (401, {"WWW-Authenticate": realm}, b"{}")
    await refused(goods.source, ImageError)
    assert [asked for asked, _ in inside.asked] != []
    assert all(sent is None for _, sent in inside.asked)


async def test_a_token_from_elsewhere_goes_to_its_registry_alone(
    goods: Goods, inside: Server, servers: Any, open_store: Any, tmp_path: Path
) -> None:
    """A redirected blob request carries neither the password nor the token."""
    elsewhere = servers()
    inside.answers["/token"] = lambda: (200, {"Content-Type": "application/json"}, b'{"token": "canary-bearer"}')
    elsewhere.answers["/blob"] = lambda: (200, {}, goods.layer)
    realm = f'Bearer realm="http://{inside.address}/token",service="x"'
    goods.server.answers["/v2/"] = lambda: (401, {"WWW-Authenticate": realm}, b"{}")
    goods.blob(goods.layer, lambda: (307, {"Location": f"http://{elsewhere.address}/blob"}, b""))
    async with open_store(auth_file(tmp_path, goods.server.address)) as images:
        await images.fetch(goods.source, refresh=False, progress=lambda _: None)
    assert ("/v2/w/manifests/1", "Bearer canary-bearer") in goods.server.asked
    assert elsewhere.asked == [("/blob", None)]


@pytest.mark.parametrize("host", ["127.0.0.1", "[::ffff:127.0.0.1]", "0x7f.1", "localhost"])
@pytest.mark.parametrize("path", ["/json", "/text"])
async def test_a_blob_that_lies_inside_is_no_layer(
    goods: Goods, inside: Server, refused: Any, host: str, path: str
) -> None:
    port = inside.address.rpartition(":")[2]
    goods.blob(goods.layer, lambda: (302, {"Location": f"http://{host}:{port}{path}"}, b""))
    await refused(goods.source, DigestMismatch, RegistryUnreachable, ImageError)


@pytest.mark.parametrize("path", ["/json", "/text"])
async def test_a_manifest_that_lies_inside_is_not_shown(goods: Goods, inside: Server, refused: Any, path: str) -> None:
    goods.server.answers["/v2/w/manifests/1"] = lambda: (302, {"Location": f"http://{inside.address}{path}"}, b"")
    await refused(goods.source, ImageError)
    assert inside.asked


@pytest.mark.parametrize("scheme", ["file:///etc/passwd", "unix:///run/x.sock", "gopher://127.0.0.1/", "//", ""])
async def test_a_redirect_to_what_is_no_web_server(goods: Goods, refused: Any, scheme: str) -> None:
    goods.blob(goods.layer, lambda: (302, {"Location": scheme}, b""))
    await refused(goods.source, ImageError)


async def test_redirects_that_go_round_end(goods: Goods, refused: Any) -> None:
    where = f"/v2/w/blobs/{digest_of(goods.layer)}"
    goods.blob(goods.layer, lambda: (302, {"Location": where}, b""))
    await refused(goods.source, ImageError)
    assert len([path for path, _ in goods.server.asked if path == where]) < 50


async def test_credentials_of_other_registries_stay_here(
    goods: Goods, servers: Any, refused: Any, tmp_path: Path
) -> None:
    """The auth file is for many registries; each gets its own, also where one redirects to another."""
    other = servers()
    other.answers["/v2/"] = lambda: (401, {"WWW-Authenticate": 'Basic realm="x"'}, b"{}")
    other.answers["/blob"] = lambda: (401, {"WWW-Authenticate": 'Basic realm="x"'}, b"{}")
    goods.blob(goods.layer, lambda: (302, {"Location": f"http://{other.address}/blob"}, b""))
    await refused(goods.source, ImageError, environ=auth_file(tmp_path, other.address))
    assert all(sent is None for _, sent in [*other.asked, *goods.server.asked])


async def test_a_downgrade_to_http_gets_no_credentials_and_no_trust(
    servers: Any, open_store: Any, refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry with TLS that sends blobs in plain text: their digests are checked all the same."""
    monkeypatch.setattr(skopeo, "_LOOPBACK", ())
    authority = Authority(tmp_path)
    secure = Goods(servers(authority.issue("IP:127.0.0.1")))
    plain = servers()
    plain.answers["/blob"] = lambda: (200, {}, secure.layer[:-1] + b"?")
    secure.server.answers["/v2/"] = lambda: (401, {"WWW-Authenticate": 'Basic realm="x"'}, b"{}")
    secure.blob(secure.layer, lambda: (302, {"Location": f"http://{plain.address}/blob"}, b""))
    environ = {**auth_file(tmp_path, secure.server.address), "SSL_CERT_FILE": str(authority.path)}
    await refused(secure.source, DigestMismatch, environ=environ)
    assert plain.asked
    assert all(sent is None for _, sent in plain.asked)
    assert any(sent for _, sent in secure.server.asked)


@pytest.mark.parametrize("names", [("DNS:elsewhere.example",), ("IP:127.0.0.1",)], ids=["other name", "unknown CA"])
async def test_certificates_are_checked(
    servers: Any, refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    monkeypatch.setattr(skopeo, "_LOOPBACK", ())
    authority = Authority(tmp_path)
    goods = Goods(servers(authority.issue(*names)))
    trust = {"SSL_CERT_FILE": str(authority.path)} if "elsewhere" in names[0] else {}
    error = await refused(
        goods.source, RegistryUnreachable, environ={**auth_file(tmp_path, goods.server.address), **trust}
    )
    assert "certificate" in str(error)
    assert goods.server.asked == []


async def test_tls_is_no_option_but_for_listed_registries(
    servers: Any, refused: Any, open_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skopeo, "_LOOPBACK", ())
    goods = Goods(servers())
    await refused(goods.source, RegistryUnreachable)
    await refused(goods.source, RegistryUnreachable, environ={"III_INSECURE_REGISTRIES": "127.0.0.1:1,example.org"})
    assert goods.server.asked == []
    async with open_store({"III_INSECURE_REGISTRIES": goods.server.address}) as images:
        await images.fetch(goods.source, refresh=False, progress=lambda _: None)

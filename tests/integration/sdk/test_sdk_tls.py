"""Every SDK over ``wss:``, its own way of trusting a private authority."""

from __future__ import annotations

from pathlib import Path

import pytest

from iii_core.engine import EngineConfig, ListenerConfig, TlsFiles, open_engine
from iii_core.host import PluginHost
from iiitools.certificates import Authority
from iiitools.sdks import Sdk

from .conftest import Hub
from .driver import open_client

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

TRUST = {"python": "SSL_CERT_FILE", "node": "NODE_EXTRA_CA_CERTS"}


async def test_calls_over_tls(sdk: Sdk, home: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = authority.issue("DNS:localhost")
    listener = ListenerConfig(host="localhost", port=0, tls=TlsFiles(cert=files.cert, key=files.key))
    trust = {TRUST[sdk.language]: str(authority.path)}
    async with open_engine(EngineConfig(listeners=(listener,)), plugins=PluginHost.create()) as engine:
        hub = Hub(engine, home)
        async with open_client(sdk, f"wss://localhost:{hub.port}", home, env=trust) as client:
            await hub.offer(client, "tls::f", "echo")
            big = "x" * 200_000
            result = await client.call("tls::f", {"text": big})
            assert result["echo"]["text"] == big

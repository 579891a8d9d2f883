"""What the tests of this plugin share."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from iii_plugin_websocket.plugin import Settings, iii_transports

from iii_core.engine.config import TlsFiles
from iii_core.engine.tls import server_context
from iii_core.records import OpenContext
from iii_core.testing.transport_harness import TransportUnderTest
from iii_core.transport.port import MessageTransport
from iiitools.certificates import Authority, Certificate


@asynccontextmanager
async def open_websocket(settings: Settings | None = None) -> AsyncGenerator[MessageTransport, None]:
    (record,) = iii_transports()
    context = OpenContext(state_dir=Path("/nonexistent"), runtime_dir=Path("/nonexistent"), home=Path("/"), environ={})
    async with record.open(settings or record.config(), context) as transport:
        yield transport


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority of this run."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def certificate(authority: Authority) -> Certificate:
    """What a listener on loopback proves itself with."""
    return authority.issue("DNS:localhost", "IP:127.0.0.1", "IP:::1")


@pytest.fixture(params=["ws", "wss"])
def websocket(request: pytest.FixtureRequest) -> TransportUnderTest:
    """The transport of this plugin, for the kit: without TLS and with."""
    if request.param == "ws":
        return TransportUnderTest(open=open_websocket, url=lambda at, target: f"ws://{at.host}:{at.port}{target}")
    authority: Authority = request.getfixturevalue("authority")
    certificate: Certificate = request.getfixturevalue("certificate")
    settings = Settings(ca_file=str(authority.path))
    return TransportUnderTest(
        open=lambda: open_websocket(settings),
        url=lambda at, target: f"wss://{at.host}:{at.port}{target}",
        tls=server_context(TlsFiles(cert=certificate.cert, key=certificate.key)),
    )

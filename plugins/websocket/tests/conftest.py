"""What the tests of this plugin share."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from iii_plugin_websocket.plugin import Settings, iii_transports

from iii_core.records import OpenContext
from iii_core.testing.transport_harness import TransportUnderTest
from iii_core.transport.port import MessageTransport


@asynccontextmanager
async def open_websocket(settings: Settings | None = None) -> AsyncGenerator[MessageTransport, None]:
    (record,) = iii_transports()
    context = OpenContext(state_dir=Path("/nonexistent"), runtime_dir=Path("/nonexistent"), home=Path("/"), environ={})
    async with record.open(settings or record.config(), context) as transport:
        yield transport


@pytest.fixture
def websocket() -> TransportUnderTest:
    """The transport of this plugin, for the kit."""
    return TransportUnderTest(
        open=open_websocket, url=lambda address, target: f"ws://{address.host}:{address.port}{target}"
    )

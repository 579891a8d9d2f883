"""The memory transport keeps the port's contract: the same checks as for transports over sockets."""

import pytest

from iii_core.testing import transport_kit
from iii_core.testing.memory_transport import MemoryNetwork
from iii_core.testing.transport_harness import TransportUnderTest


@pytest.mark.parametrize("check", transport_kit.CHECKS, ids=lambda check: check.__name__)
async def test_conformance(check: transport_kit.Check) -> None:
    network = MemoryNetwork(buffer_bytes=256 * 1024)
    await check(
        TransportUnderTest(
            open=network.open_transport,
            url=lambda address, target: f"memory://{address.host}:{address.port}{target}",
        )
    )

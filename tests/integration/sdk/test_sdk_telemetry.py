"""SDKs with their telemetry on, as it is by default: a second connection, which is no worker."""

from __future__ import annotations

import json
import signal

import pytest
import trio

from iiitools.sdks import SDKS, Sdk
from iiitools.waiting import PATIENCE

from .conftest import Hub, open_clients
from .driver import end

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


# The delay is OpenTelemetry's own setting: before 0.25 the Python SDK loses what is not exported when it shuts down.
TELEMETRY = {"OTEL_ENABLED": "true", "OTEL_BSP_SCHEDULE_DELAY": "50"}


@pytest.fixture(scope="module")
async def frames(hub: Hub) -> list[bytes]:
    """What the engine is sent by workers of every SDK that are called once, and then end by SIGTERM."""
    received: list[bytes] = []
    remove = hub.engine.add_telemetry_sink(lambda _worker_id, frame: received.append(frame))
    async with open_clients(SDKS, hub.url, hub.home, "traced-", env=TELEMETRY) as clients:
        for sdk, client in clients.items():
            await hub.offer(client, f"traced::{sdk.label}", "echo")
            await client.call(f"traced::{sdk.label}", {})
            assert len(hub.worker_ids(client.name)) == 1
        with trio.move_on_after(PATIENCE):
            while not {client.name for client in clients.values()} <= services_of(received):  # noqa: ASYNC110
                await trio.sleep(0.05)
        async with trio.open_nursery() as nursery:
            for client in clients.values():
                nursery.start_soon(end, client, signal.SIGTERM)
    remove()
    return received


def services_of(frames: list[bytes]) -> set[str]:
    """The services that sent spans."""
    traces = [json.loads(frame[4:]) for frame in frames if frame.startswith(b"OTLP")]
    attributes = [
        found for trace in traces for span in trace["resourceSpans"] for found in span["resource"]["attributes"]
    ]
    return {found["value"]["stringValue"] for found in attributes if found["key"] == "service.name"}


async def test_spans_reach_the_engine(frames: list[bytes], sdk: Sdk) -> None:
    assert f"traced-{sdk.label}" in services_of(frames)


async def test_every_frame_has_a_known_kind(frames: list[bytes]) -> None:
    assert {frame[:4] for frame in frames} <= {b"OTLP", b"MTRC", b"LOGS"}

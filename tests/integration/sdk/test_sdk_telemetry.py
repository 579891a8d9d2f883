"""SDKs with their telemetry on, as it is by default: a second connection, which is no worker."""

from __future__ import annotations

import json
import signal

import pytest
import trio
from iiitools.sdks import SDKS, Sdk

from .conftest import Hub, open_clients
from .driver import end

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
async def frames(hub: Hub) -> list[bytes]:
    """What the engine is sent by workers of every SDK that are called once, and then end by SIGTERM."""
    received: list[bytes] = []
    remove = hub.engine.add_telemetry_sink(lambda _worker_id, frame: received.append(frame))
    async with open_clients(SDKS, hub.url, hub.home, "traced-", env={"OTEL_ENABLED": "true"}) as clients:
        for sdk, client in clients.items():
            await hub.offer(client, f"traced::{sdk.label}", "echo")
            await client.call(f"traced::{sdk.label}", {})
            assert len(hub.worker_ids(client.name)) == 1
        async with trio.open_nursery() as nursery:
            for client in clients.values():
                nursery.start_soon(end, client, signal.SIGTERM)
        with trio.move_on_after(5):
            while not all(f"execute traced::{sdk.label}" in spans_of(received) for sdk in SDKS):
                await trio.sleep(0.05)
    remove()
    return received


def spans_of(frames: list[bytes]) -> set[str]:
    """Names of the spans in the frames of traces."""
    traces = [json.loads(frame[4:]) for frame in frames if frame.startswith(b"OTLP")]
    scopes = [scope for trace in traces for resource in trace["resourceSpans"] for scope in resource["scopeSpans"]]
    return {span["name"] for scope in scopes for span in scope["spans"]}


async def test_spans_reach_the_engine(frames: list[bytes], sdk: Sdk) -> None:
    assert f"execute traced::{sdk.label}" in spans_of(frames)


async def test_every_frame_has_a_known_kind(frames: list[bytes]) -> None:
    assert {frame[:4] for frame in frames} <= {b"OTLP", b"MTRC", b"LOGS"}

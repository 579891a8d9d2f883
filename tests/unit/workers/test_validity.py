"""Settings that can never work are said so before anything ends for them, and secrets stay out of what is said."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from iii_core.errors import ConfigError, PluginMissing
from iii_core.project.config import parse_config
from iii_core.project.lock import Lock, with_image
from iii_core.project.read import parse_document
from iii_core.project.sandbox_settings import Places, PublishedPort
from iii_core.sandbox.port import Limits, Mount
from iii_core.workers.declare import managed_specs
from iii_core.workers.manager import WorkerManager
from iii_core.workers.spec import WorkerSpec
from iii_core.workers.state import Phase
from iii_core.workers.validity import check_spec

from .workerbench import open_bench, run_on, spec_of

ENGINE = 49134


@pytest.fixture
def anyio_backend(no_threads: None) -> tuple[str, dict[str, Any]]:
    """Nothing here waits for anything outside, so time may jump."""
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0.005)}


def mounted(folder: str, target: str = "/x") -> dict[str, Any]:
    return {"mounts": (Mount(source=Path(folder), target=target),)}


NEVER: list[tuple[dict[str, Any], str]] = [
    ({"limits": Limits(memory_mib=99999999999999999999)}, "a sandbox cannot have a limit of memory 1e+20"),
    ({"limits": Limits(memory_mib=1)}, "limit of memory 1"),
    ({"fallback": Limits(cpus=5000)}, "limit of cpus 5000"),
    ({"env": {"A=B": "x"}}, "'A=B' is no name"),
    ({"env": {"": "x"}}, "'' is no name"),
    ({"env": {"C": "a\0b"}}, "the value of C holds a NUL"),
    ({"env": {"C": "a\udc80b"}}, "the value of C is not valid UTF-8"),
    ({"env": {"C": "x" * 131072}}, "C is longer than"),
    ({"env": {f"C{n}": "x" * 100_000 for n in range(10)}}, "its environment is larger"),
    ({"env": {"III_URL": "ws://evil/"}}, "III_URL (ws://evil) leads elsewhere"),
    ({"ports": (PublishedPort(host=ENGINE, guest=80),)}, "port 49134 of this machine is the engine's own"),
    ({"ports": (PublishedPort(host=42777, guest=ENGINE),)}, "port 49134 inside is the engine's"),
    ({"ports": (PublishedPort(host=42777, guest=80, address="192.0.2.1"),)}, "cannot publish port 80 at 192.0.2.1"),
    (mounted("/nope"), "/nope is to be mounted, and is no folder"),
    (mounted("/usr", "/run/iii"), "/run/iii cannot be mounted"),
    (mounted("/usr", "/tmp"), "/tmp cannot be mounted"),
]


@pytest.mark.parametrize(("changes", "told"), NEVER, ids=lambda value: value if isinstance(value, str) else "")
async def test_a_running_worker_goes_on_whatever_is_written(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    async with open_bench(tmp_path, run_on, run=False) as bench:
        manager = WorkerManager(bench.nursery, bench.services, project=tmp_path, state_dir=tmp_path)
        await manager.apply({"w": spec_of()})
        await bench.began(1)
        worker = manager.get("w")
        bench.engine.see(True)
        await worker.ready(10)
        await manager.apply({"w": spec_of(**changes)})
        await trio.sleep(10)
        facts = worker.as_json()
        assert (facts["status"], facts["restarts"], len(bench.starts)) == ("running", 0, 1)
        assert any(told in note for note in facts["notes"]), facts["notes"]
        await manager.stop_all()


async def test_a_port_that_is_taken_may_be_free_in_a_moment(tmp_path: Path) -> None:
    async with open_bench(tmp_path, run_on, run=False) as bench:
        manager = WorkerManager(bench.nursery, bench.services, project=tmp_path, state_dir=tmp_path)
        await manager.apply({"w": spec_of()})
        await bench.began(1)
        worker = manager.get("w")
        with socket.create_server(("127.0.0.1", 0)) as taken:
            ports = (PublishedPort(host=taken.getsockname()[1], guest=80),)
            await manager.apply({"w": spec_of(ports=ports)})
            await worker._until(lambda: worker.phase is Phase.RESTARTING)
        await bench.began(2)
        await manager.stop_all()


@pytest.mark.parametrize(("changes", "told"), NEVER, ids=lambda value: value if isinstance(value, str) else "")
async def test_a_new_worker_fails_at_once(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    async with open_bench(tmp_path, run_on, spec=spec_of(**changes)) as bench:
        await bench.until(Phase.FAILED)
        facts = bench.supervisor.as_json()
        assert facts["restarts"] == 0
        assert facts["error"]["code"] == "W131"
        assert told in facts["error"]["message"]


def test_what_other_addresses_do_with_the_engines_port_is_their_affair() -> None:
    check_spec(spec_of(ports=(PublishedPort(host=ENGINE, guest=80, address="127.0.0.2"),)), ENGINE)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("ws://u:s3cr3t@evil/s3cr3t?t=s3cr3t#s3cr3t", "ws://evil"),
        ("wss://[fe80::1]:5/", "wss://[fe80::1]:5"),
        ("ws://host:s3cr3t", None),
        ("s3cr3t", None),
        ("http://s3cr3t@localhost", None),
        ("ws://[s3cr3t", None),
    ],
)
def test_a_url_is_shown_without_what_may_be_secret(url: str, shown: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        check_spec(spec_of(env={"III_URL": url}), ENGINE)
    told = f"{caught.value.message} {caught.value.hint} {caught.value.details}"
    assert "s3cr3t" not in told
    assert caught.value.details.get("url") == shown


def declared(text: str, lock: Lock | None = None) -> WorkerSpec:
    config = parse_config(parse_document(text, name="config.yaml"))
    return managed_specs(config, {"T": "s3cr3t"}, lock, places=Places(project=Path("/p")))["w"]


async def test_a_source_in_a_variable_is_told_as_it_is_written(tmp_path: Path) -> None:
    spec = declared("workers:\n- {name: w, image: '${T}'}\n")
    assert spec.source == "s3cr3t"
    async with open_bench(tmp_path, run_on, spec=spec, run=False) as bench:
        bench.images.error = PluginMissing("nobody knows 's3cr3t'", hint="s3cr3t?", details={"a": ["s3cr3t"]})
        bench.nursery.start_soon(bench.supervisor.run)
        await bench.until(Phase.FAILED)
        assert bench.supervisor.as_json()["error"]["message"] == "nobody knows '${T}'"
        assert "s3cr3t" not in f"{bench.supervisor.as_json()} {bench.log()}"
        assert bench.images.error.details == {"a": ["${T}"]}


def test_so_it_is_where_the_lock_disagrees() -> None:
    lock = with_image(Lock(), "w", "x/other:1", f"x/other:1@sha256:{0:064}", "1")
    problem = declared("workers:\n- {name: w, image: 'x/${T}'}\n", lock).problem
    assert problem is not None
    assert problem.code == "W150"
    assert "x/${T}" in problem.message
    assert "s3cr3t" not in f"{problem.message} {problem.details}"

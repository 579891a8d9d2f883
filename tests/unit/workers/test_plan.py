"""What is run for a managed worker: precedence of environment and limits, the engine's URL, users and signals."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from iii_core.errors import ConfigError, ImageUserUnknown
from iii_core.images.port import Image, ImageConfig, ImageHints, ImageUser
from iii_core.sandbox.port import Isolation, Limits, RootImage
from iii_core.workers.plan import WorkerPlan, plan_worker
from iii_core.workers.spec import WorkerSpec, sandbox_id

DIGEST = "sha256:" + "0" * 64


def plan(
    config: ImageConfig | None = None,
    env: dict[str, str] | None = None,
    *,
    hints: ImageHints | None = None,
    limits: Limits | None = None,
    user: ImageUser | None = None,
) -> WorkerPlan:
    image = Image(
        reference="localhost:5000/w:1",
        digest=DIGEST,
        name="w",
        config=config or ImageConfig(),
        root=RootImage(path=Path("/r"), format="squashfs", digest=DIGEST),
        size=1,
        hints=hints,
        user=user,
    )
    spec = WorkerSpec(name="w", source=image.reference, env=env or {}, limits=limits or Limits())
    return plan_worker(spec, image, engine_port=5555, isolation=Isolation.NAMESPACES)


def test_environment_precedence() -> None:
    env = plan(
        ImageConfig(env=(("PATH", "/opt/bin"), ("A", "image"), ("B", "image"))),
        {"B": "config", "III_WORKER_NAME": "liar", "III_ISOLATION": "liar"},
    ).env
    assert (env["PATH"], env["A"], env["B"]) == ("/opt/bin", "image", "config")
    assert env["III_WORKER_NAME"] == "w"
    assert env["III_ISOLATION"] == "namespaces"
    assert plan().env["PATH"].endswith(":/bin")


def test_the_url_is_the_tunnel_unless_asked_otherwise() -> None:
    assert plan().env["III_URL"] == plan().env["III_ENGINE_URL"] == "ws://127.0.0.1:5555"
    assert plan(env={"III_URL": "ws://localhost:49134"}).url == "ws://localhost:49134"
    both = plan(ImageConfig(env=(("III_ENGINE_URL", "ws://[::1]:5555"),)), {"III_URL": "ws://localhost:49134"})
    assert both.env["III_URL"] == both.env["III_ENGINE_URL"] == "ws://localhost:49134", "what config says wins"


@pytest.mark.parametrize(
    "url", ["ws://10.0.0.1:5555", "ws://localhost:1", "http://localhost:5555", "ws://[bad", "ws://engine.example", "x"]
)
def test_a_url_that_cannot_work_is_said_at_once(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(env={"III_URL": url})
    assert "III_URL" in caught.value.message


def test_url_argument_is_patched_where_the_image_asks() -> None:
    entry = ImageConfig(entrypoint=("/w",), cmd=("--url", "ws://x:1", "-v"))
    asked = ImageConfig(entrypoint=("/w",), env=(("III_URL", "ws://localhost:49134"),))
    assert plan(entry).argv == ("/w", "--url", "ws://127.0.0.1:5555", "-v")
    assert plan(ImageConfig(entrypoint=("/w",), cmd=("--url=ws://x:1",))).argv == ("/w", "--url=ws://127.0.0.1:5555")
    assert plan(asked).argv == ("/w", "--url", "ws://localhost:49134")
    assert plan(ImageConfig(entrypoint=("/w",))).argv == ("/w",)
    assert plan().argv == ("/bin/sh",)


def test_limits_precedence() -> None:
    hints = ImageHints(cpus=4, memory_mib=100)
    assert plan().limits == Limits(cpus=2, memory_mib=2048, pids=4096)
    assert plan(hints=hints).limits == Limits(cpus=4, memory_mib=100, pids=4096)
    assert plan(hints=hints, limits=Limits(memory_mib=64, pids=9)).limits == Limits(cpus=4, memory_mib=64, pids=9)


@pytest.mark.parametrize(
    ("user", "ids"),
    [("", (0, 0)), ("root", (0, 0)), ("0:5", (0, 5)), ("1000", (1000, 0)), ("1000:50", (1000, 50)), ("root:7", (0, 7))],
)
def test_user_by_number(user: str, ids: tuple[int, int]) -> None:
    planned = plan(ImageConfig(user=user))
    assert (planned.uid, planned.gid, planned.groups) == (*ids, ())


def test_user_by_the_files_of_the_image() -> None:
    node = ImageUser(uid=1000, gid=1001, groups=(7, 9), home="/home/node")
    planned = plan(ImageConfig(user="node"), user=node)
    assert (planned.uid, planned.gid, planned.groups) == (1000, 1001, (7, 9))
    assert planned.env["HOME"] == "/home/node"
    assert plan(ImageConfig(env=(("HOME", "/h"),)), user=node).env["HOME"] == "/h"
    assert plan(ImageConfig(user="1000")).env["HOME"] == "/"
    assert plan().env["HOME"] == "/root"


@pytest.mark.parametrize("user", ["node", "node:node", "1000:staff", "root:wheel", "x:0"])
def test_a_user_whom_the_image_does_not_know(user: str) -> None:
    with pytest.raises(ImageUserUnknown, match=user) as caught:
        plan(ImageConfig(user=user))
    assert caught.value.code == "W227"
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "number"), [("", 15), ("SIGINT", 2), ("INT", 2), ("9", 9), ("SIGNOPE", 15), ("999", 15), ("SIG_DFL", 15)]
)
def test_stop_signal(name: str, number: int) -> None:
    assert plan(ImageConfig(stop_signal=name)).stop_signal == number
    assert plan().stop_signal == signal.SIGTERM


def test_secrets_stay_out_of_reprs() -> None:
    planned = plan(env={"TOKEN": "s3cret"})
    assert "s3cret" not in repr(planned)
    assert "s3cret" not in repr(WorkerSpec(name="w", source="x", env={"TOKEN": "s3cret"}))


def test_sandbox_ids() -> None:
    ids = {sandbox_id(p, n) for p in ("/a", "/b") for n in ("My_worker.1", "my-worker-1", "é", "x" * 200)}
    assert len(ids) == 8
    assert all(len(i) <= 63 and i[0].isalnum() and i == i.lower() for i in ids)
    assert sandbox_id("/a", "My_worker.1").startswith("my-worker-1-")

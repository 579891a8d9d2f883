"""Pulls that are cut short, run twice at once or meet a full disk: the store is as it was, or complete."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
from iii_registry_oci.manifest import host_platform

from iii_core.images.port import Progress
from iiitools.lyingregistry import Answer, Goods
from iiitools.ocilayout import tar_layer, write_layout
from iiitools.registry import Registry

pytestmark = pytest.mark.integration
Snapshot = Callable[[Path], Any]

FETCH = """
import json, os, sys, trio
from pathlib import Path
from iii_core.errors import IIIError
from iii_core.records import OpenContext
from iii_registry_oci.resolver import open_resolver

async def main(home, *sources):
    folder = Path(home)
    context = OpenContext(state_dir=folder, runtime_dir=folder, home=folder, environ=dict(os.environ))
    said = []
    async with open_resolver(None, context) as images:
        for source in sources:
            try:
                said.append((await images.fetch(source, refresh=False, progress=lambda _: None)).digest)
            except IIIError as error:
                said.append(error.code)
    print(json.dumps(said))

trio.run(main, *sys.argv[1:])
"""


def push(registry: Registry, tmp_path: Path, name: str, noise: int) -> str:
    """Push an image with ``noise`` bytes that cannot be compressed."""
    layers = [tar_layer({"base": os.urandom(noise // 2)}), tar_layer({"top": os.urandom(noise // 2)})]
    architecture = host_platform().architecture
    write_layout(tmp_path / "layout", tag="t", layers=layers, config={}, architecture=architecture)
    return registry.push(tmp_path / "layout", "t", name)


def start_fetch(home: Path, *sources: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [*prefix, sys.executable, "-c", FETCH, str(home), *sources]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(process: subprocess.Popen[str]) -> list[str]:
    out, err = process.communicate(timeout=50)
    assert process.returncode == 0, err
    said: list[str] = json.loads(out)
    return said


def leftovers(home: Path) -> list[Path]:
    return list((home / "images" / "staging").iterdir())


def test_two_processes_pull_one_image_once(registry: Registry, tmp_path: Path, home: Path) -> None:
    source = push(registry, tmp_path, "twice:1", 4_000_000)
    pulls = [start_fetch(home, source) for _ in range(2)]
    first, second = (outcome(pull) for pull in pulls)
    assert first == second
    assert first[0].startswith("sha256:")
    layers = [line for line in registry.requests() if '"GET /v2/twice/blobs/' in line]
    assert len(layers) == 3  # two layers and the configuration, once
    assert leftovers(home) == []


async def test_two_tasks_pull_one_image_once(registry: Registry, tmp_path: Path, open_store: Any, steps: Any) -> None:
    source = push(registry, tmp_path, "tasks:1", 1_000_000)
    found: list[Any] = []

    async def fetch(images: Any) -> None:
        found.append(await images.fetch(source, refresh=False, progress=steps))

    async with open_store() as images, trio.open_nursery() as nursery:
        nursery.start_soon(fetch, images)
        nursery.start_soon(fetch, images)
    assert found[0] == found[1]
    assert len([line for line in registry.requests() if '"GET /v2/tasks/blobs/' in line]) == 3


@pytest.mark.parametrize("stage", ["resolving", "downloading", "unpacking"])
@pytest.mark.parametrize("delay", [0.0, 0.03, 0.1])
async def test_cancelling_leaves_the_store_as_it_was(
    registry: Registry, tmp_path: Path, open_store: Any, home: Path, take_snapshot: Snapshot, stage: str, delay: float
) -> None:
    kept = push(registry, tmp_path, "kept:1", 1000)
    source = push(registry, tmp_path, f"cut:{stage}-{delay}", 12_000_000)
    async with open_store() as images:
        await images.fetch(kept, refresh=False, progress=lambda _: None)
        before = take_snapshot(home)
        children = set(psutil.Process().children(recursive=True))
        with trio.CancelScope() as scope:

            def cut(step: Progress) -> None:
                if step.stage == stage and scope.deadline == float("inf"):
                    scope.deadline = trio.current_time() + delay

            await images.fetch(source, refresh=False, progress=cut)
        if scope.cancelled_caught:
            assert take_snapshot(home) == before
        assert set(psutil.Process().children(recursive=True)) <= children
        assert leftovers(home) == []
        assert (await images.fetch(source, refresh=False, progress=lambda _: None)).reference == source


def save(registry: Registry, tmp_path: Path, kind: str, name: str, noise: int) -> str:
    """The source of an image like that of `push`, of each kind."""
    source = push(registry, tmp_path, f"{name}:1", noise)
    if kind == "docker":
        return source
    (tmp_path / "layout").rename(tmp_path / name)
    scheme, _, suffix = kind.partition(".")
    target = f"{scheme}:{tmp_path}/{name}.tar"
    command = ["skopeo", "--insecure-policy", "copy", "--quiet", f"oci:{tmp_path}/{name}:t", target]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    if suffix:
        subprocess.run(["gzip", "-1", f"{tmp_path}/{name}.tar"], check=True, timeout=30)
    return f"{target}.{suffix}" if suffix else target


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
@pytest.mark.parametrize("kind", ["docker", "oci-archive", "oci-archive.gz", "docker-archive.gz"])
def test_a_full_disk_leaves_the_store_as_it_was(registry: Registry, tmp_path: Path, home: Path, kind: str) -> None:
    """Two sizes: one has no room for the download, the other none for the root image."""
    small, large = (save(registry, tmp_path, kind, *image) for image in (("small", 1000), ("large", 4_000_000)))
    mount = 'mkdir -p "$1" && mount -t tmpfs -o "size=$2" none "$1"'
    script = f'{mount} && shift 2 && "$@" && find "$HOME_UNDER_TEST" -type f'
    for size in ("2m", "6m"):
        code = [sys.executable, "-c", FETCH, str(home), small, large, small]
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", script, "sh", str(home), size, *code],
            capture_output=True,
            text=True,
            timeout=50,
            env={**os.environ, "HOME_UNDER_TEST": str(home)},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said, *files = done.stdout.splitlines()
        digest, code_of_large, again = json.loads(said)
        assert (code_of_large, again) == ("W226", digest)
        assert not any("/staging/" in name for name in files)
        assert len([name for name in files if "/blobs/" in name]) == 3
        assert len([name for name in files if name.endswith(".squashfs")]) == 1


def test_what_a_killed_pull_left_is_swept(goods: Goods, home: Path) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def stall() -> Answer:
        asked.set()
        go_on.wait(50)
        return 200, {}, goods.layer

    goods.blob(goods.layer, stall)
    pull = start_fetch(home, goods.source)
    try:
        assert asked.wait(50)
        pull.send_signal(signal.SIGKILL)
        pull.communicate(timeout=30)
    finally:
        go_on.set()
    assert leftovers(home) != []
    assert outcome(start_fetch(home, goods.source))[0].startswith("sha256:")
    assert leftovers(home) == []


def test_a_record_that_is_torn_is_no_image(registry: Registry, tmp_path: Path, home: Path) -> None:
    source = push(registry, tmp_path, "torn:1", 1000)
    (digest,) = outcome(start_fetch(home, source))
    for kind in ("roots/*.json", "refs/*.json", "roots/*.squashfs"):
        paths = list((home / "images").glob(kind))
        assert paths
        for path in paths:
            path.write_bytes(path.read_bytes()[:-5])
        assert outcome(start_fetch(home, source)) == [digest]

"""From an image's layers to a root that a sandbox can boot from.

The image is the example worker for Node.js: three layers, about 190 MB and 8,000 files. Ours is checked, merged and
packed into squashfs, which every backend boots from as it is. The references are ``umoci unpack``, which checks the
layers and makes a folder of them, and the least that any tool must do: decompress the layers and hash what comes out.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

import trio
from iii_registry_oci.layers.blob import Layer
from iii_registry_oci.layers.limits import Limits
from iii_registry_oci.rootimage import build_root

from iiitools.bench import Row, median_times
from iiitools.workerimages import build_hello_worker

ROUNDS = 5


def measure() -> list[Row]:
    """Against ``umoci unpack``, and against ``gzip -dc | sha256sum``."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        layers = read_layers(folder / "layout", build_hello_worker(folder / "layout", tag="image"))
        numbers = itertools.count()

        def ours() -> None:
            trio.run(build, layers, folder / f"{next(numbers)}.squashfs")

        def umoci() -> None:
            run("umoci", "unpack", "--image", f"{folder}/layout:image", str(folder / f"bundle{next(numbers)}"))

        def floor() -> None:
            for layer in layers:
                run("sh", "-c", f"gzip -dc {shlex.quote(str(layer.path))} | sha256sum")

        size = sum(layer.size for layer in layers) / 1e6
        conditions = f"{len(layers)} layers of {size:.0f} MB together, {len(os.sched_getaffinity(0))} CPUs, warm cache"
        return [
            compare(median_times(ours, umoci, rounds=ROUNDS, warmup=1), "umoci unpack", 0.5, conditions),
            compare(median_times(ours, floor, rounds=ROUNDS, warmup=1), "gzip -dc | sha256sum", 2.0, conditions),
        ]


def compare(times: tuple[float, float], reference: str, aim: float, conditions: str) -> Row:
    """The row for what `median_times` gives."""
    return Row(
        name="image to bootable root",
        unit="s",
        ours=times[0],
        reference=times[1],
        reference_name=reference,
        aim=aim,
        better="lower",
        conditions=conditions,
    )


def read_layers(layout: Path, digest: str) -> list[Layer]:
    """The layers of an image in a layout."""
    blobs = layout / "blobs"
    manifest = json.loads((blobs / digest.replace(":", "/")).read_text())
    config = json.loads((blobs / manifest["config"]["digest"].replace(":", "/")).read_text())
    return [
        Layer(path=blobs / item["digest"].replace(":", "/"), digest=item["digest"], size=item["size"], diff_id=diff_id)
        for item, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True)
    ]


async def build(layers: list[Layer], output: Path) -> None:
    """What the resolver does with layers that have arrived."""
    await build_root(layers, output, user="", limits=Limits(), environ=os.environ, moved=lambda _: None)


def run(*command: str) -> None:
    """Run a program that must succeed."""
    subprocess.run(command, check=True, capture_output=True)

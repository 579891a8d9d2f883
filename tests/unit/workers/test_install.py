"""What ``add`` writes of an image, and what it refuses to write."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from iii_core.errors import ConfigError, PluginMissing
from iii_core.images.port import Image, ImageConfig, ImageHints, ProgressSink
from iii_core.project.config import load_config
from iii_core.project.context import places_of
from iii_core.project.locate import Project
from iii_core.sandbox.port import RootImage
from iii_core.workers.check import UnopenedBackends, check_entry
from iii_core.workers.declare import managed_specs
from iii_core.workers.image_service import ImageService
from iii_core.workers.install import Installed, add_worker, drop_snapshot_of

DIGEST = "sha256:" + "0" * 64
SECRET = "s3cr3t"


class Registry:
    """Knows one image."""

    def __init__(self, image: Image) -> None:
        self.image = image

    async def fetch(self, source: str, *, refresh: bool, progress: ProgressSink) -> Image:
        if SECRET in source:
            raise PluginMissing(f"nobody knows {source!r}", details={"source": source})
        return replace(self.image, reference=source)


def image(*env: tuple[str, str], hints: ImageHints | None = None) -> Image:
    return Image(
        reference="",
        digest=DIGEST,
        name="w",
        config=ImageConfig(env=env),
        root=RootImage(path=Path("/r"), format="squashfs", digest=DIGEST),
        size=1,
        hints=hints,
    )


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with tempfile.TemporaryDirectory(prefix="iii-") as runtime:  # short: it is for sockets
        environ = {"SECRET_TOKEN": SECRET, "XDG_RUNTIME_DIR": runtime}
        yield Project(config_path=tmp_path / "config.yaml", home=tmp_path / "home", environ=environ)


async def add(project: Project, found: Image, source: str = "oci:w:1", *, force: bool = False) -> Installed:
    config = load_config(project) if project.config_path.exists() else None
    check = partial(
        check_entry,
        config=config or load_config(replace(project, default_workers=())),
        project=project,
        sandboxes=UnopenedBackends({}),
        engine_port=5555,
    )
    images = cast("ImageService", Registry(found))
    return await add_worker(
        project,
        images,
        source,
        force=force,
        reset_config=False,
        progress=lambda _step: None,
        check=check,
        drop_snapshot=partial(drop_snapshot_of, project),
    )


def env_of(project: Project) -> dict[str, str]:
    spec = managed_specs(load_config(project), project.environ, places=places_of(project))["w"]
    assert spec.problem is None
    return dict(spec.env)


async def test_what_an_image_says_is_literal_and_what_the_user_says_is_not(project: Project) -> None:
    says = {"LEAK": "${SECRET_TOKEN}", "API_URL": "http://evil/?t=${SECRET_TOKEN}&u=$${SECRET_TOKEN:x}"}
    await add(project, image(*says.items()))
    assert env_of(project) == says
    text = project.config_path.read_text()
    assert "LEAK: $${SECRET_TOKEN}" in text
    project.config_path.write_text(text.replace("LEAK: $$", "LEAK: $"))
    assert env_of(project)["LEAK"] == SECRET
    again = await add(project, image(*says.items()), force=True)
    assert again.config == "unchanged"
    assert env_of(project)["LEAK"] == SECRET, "the user's words stay"


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (image(("III_URL", "ws://evil:1/")), "III_URL"),
        (image(("A", "a\0b")), "the value of A holds a NUL"),
        (image(("A", "x" * 200_000)), "A is longer than"),
        (image(hints=ImageHints(memory_mib=99999999999999999999)), "limit of memory 1e"),
        (image(hints=ImageHints(cpus=10**9)), "limit of cpus 1e"),
    ],
)
async def test_an_image_that_can_never_work_is_not_written(project: Project, found: Image, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        await add(project, found)
    assert told in caught.value.message
    assert "'w'" in caught.value.message
    assert not project.config_path.exists()


async def test_what_the_user_has_written_wins_over_what_would_be_refused(project: Project) -> None:
    project.config_path.write_text("workers:\n- {name: w, image: 'oci:w:0', resources: {memory: 64}}\n")
    added = await add(project, image(hints=ImageHints(memory_mib=10**18)))
    assert (added.config, added.replaces) == ("updated", "oci:w:0")


async def test_a_source_in_a_variable_is_told_as_it_is_written(project: Project) -> None:
    project.config_path.write_text("workers:\n- {name: w, image: '${SECRET_TOKEN}'}\n")
    with pytest.raises(PluginMissing) as caught:
        await add(project, image(), "w", force=True)
    assert caught.value.message == "nobody knows '${SECRET_TOKEN}'"
    assert SECRET not in repr(caught.value.details) + str(caught.value)

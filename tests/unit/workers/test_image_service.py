"""Registries by their settings: who gets a source, and that config.yaml's settings reach it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import pluggy
import pytest

from iii_core.errors import ConfigIoError, PluginMissing
from iii_core.host import PluginHost
from iii_core.images.port import ImageResolver
from iii_core.records import OpenContext, RegistryResolver
from iii_core.workers.image_service import open_images

hookimpl = pluggy.HookimplMarker("iii")


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    mirror: str = "none"


class Registries:
    """Two registries; ``opened`` is with which settings, in order."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, str]] = []

    @hookimpl
    def iii_registry_resolvers(self) -> list[RegistryResolver]:
        return [self._record("plain", 0), self._record("special", 1)]

    def _record(self, name: str, priority: int) -> RegistryResolver:
        @asynccontextmanager
        async def open_one(settings: Settings, context: OpenContext) -> AsyncGenerator[ImageResolver]:
            self.opened.append((context.state_dir.name, settings.mirror))
            yield cast("ImageResolver", name)

        def accepts(source: str) -> bool:
            return name == "plain" or source.startswith("special:")

        return RegistryResolver(name=name, priority=priority, accepts=accepts, config=Settings, open=open_one)


def context_of(provider: str) -> OpenContext:
    return OpenContext(state_dir=Path("/state") / provider, runtime_dir=Path("/r"), home=Path("/h"), environ={})


async def test_each_is_opened_once_with_its_own_settings() -> None:
    registries = Registries()
    host = PluginHost.create(installed=False, plugins=[registries])
    async with open_images(host, context_of, {"special": {"mirror": "near"}}) as images:
        assert registries.opened == []
        for _ in range(2):
            assert str(await images.resolver("special:x")) == "special"
            assert str(await images.resolver("x")) == "plain"
    assert registries.opened == [("special", "near"), ("plain", "none")]


async def test_a_source_that_none_accepts() -> None:
    async with open_images(PluginHost.create(installed=False), context_of) as images:
        with pytest.raises(PluginMissing, match="no installed registry knows what to do with 'x'"):
            await images.resolver("x")


async def test_a_home_that_is_none_is_said(tmp_path: Path) -> None:
    @asynccontextmanager
    async def open_one(_: Settings, context: OpenContext) -> AsyncGenerator[ImageResolver]:
        (context.home / "images").mkdir(parents=True)
        yield cast("ImageResolver", "never")

    record = RegistryResolver(name="one", priority=0, accepts=lambda _: True, config=Settings, open=open_one)

    @hookimpl
    def iii_registry_resolvers() -> list[RegistryResolver]:
        return [record]

    home = tmp_path / "file"
    home.touch()

    def context(_: str) -> OpenContext:
        return OpenContext(state_dir=tmp_path, runtime_dir=tmp_path, home=home, environ={})

    host = PluginHost.create(installed=False, plugins=[SimpleNamespace(iii_registry_resolvers=iii_registry_resolvers)])
    async with open_images(host, context, {}) as images:
        with pytest.raises(ConfigIoError, match=f"images cannot be kept in {home}: Not a directory: {home}/images"):
            await images.resolver("x")

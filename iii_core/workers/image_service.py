"""Images from whichever registry plugin accepts a source; each resolver is opened when it is first needed."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import trio

from iii_core.errors import ConfigIoError, PluginMissing
from iii_core.project.files import hint_for
from iii_core.project.provider_settings import convert_settings
from iii_core.records import RegistryResolver

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping
    from typing import Any

    from iii_core.host import PluginHost
    from iii_core.images.port import Image, ImageResolver, ProgressSink
    from iii_core.records import OpenContext


class ImageService:
    """The resolvers of one program. Methods may be called concurrently."""

    def __init__(
        self,
        host: PluginHost,
        context: Callable[[str], OpenContext],
        stack: AsyncExitStack,
        settings: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self._records = host.collect(RegistryResolver)
        self._context = context
        self._settings = settings
        self._stack = stack
        self._open: dict[str, ImageResolver] = {}
        self._opening = trio.Lock()

    def accepts(self, source: str) -> bool:
        """Whether any resolver takes this source."""
        return any(record.accepts(source) for record in self._records.values())

    async def resolver(self, source: str) -> ImageResolver:
        """The resolver of highest priority that accepts ``source``.

        Raises:
            PluginMissing: none does.
            ConfigIoError: it cannot keep its files where the user wants them.
        """
        willing = [record for record in self._records.values() if record.accepts(source)]
        if not willing:
            installed = ", ".join(sorted(self._records)) or "none"
            raise PluginMissing(
                f"no installed registry knows what to do with {source!r}",
                hint=f"installed registries: {installed}; an OCI image is named like 'registry.example/org/worker:tag'",
                details={"source": source},
            )
        record = max(willing, key=lambda record: record.priority)
        async with self._opening:
            if record.name not in self._open:
                settings = convert_settings(self._settings.get(record.name, {}), record)
                context = self._context(record.name)
                opened = record.open(settings, context)
                try:
                    self._open[record.name] = await self._stack.enter_async_context(opened)
                except OSError as error:
                    raise _unusable(context, error) from error
        return self._open[record.name]

    async def fetch(self, source: str, *, refresh: bool, progress: ProgressSink) -> Image:
        """See `iii_core.images.port.ImageResolver.fetch`."""
        return await (await self.resolver(source)).fetch(source, refresh=refresh, progress=progress)


@asynccontextmanager
async def open_images(
    host: PluginHost,
    context: Callable[[str], OpenContext],
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> AsyncGenerator[ImageService]:
    """The image service of one program.

    Args:
        host: where the resolvers come from.
        context: makes a provider's `OpenContext` from its name.
        settings: of each resolver by name, checked (`iii_core.project.provider_settings`).
    """
    async with AsyncExitStack() as stack:
        yield ImageService(host, context, stack, settings or {})


def _unusable(context: OpenContext, error: OSError) -> ConfigIoError:
    where = f": {error.filename}" if error.filename else ""
    return ConfigIoError(
        f"images cannot be kept in {context.home}: {error.strerror or error}{where}",
        hint=hint_for(error) or "it must be a folder that you may write to; III_HOME names another one",
        details={"path": str(context.home)},
    )

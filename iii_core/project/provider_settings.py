"""Settings of providers (sandbox backends, registries, transports) out of config.yaml, checked against their types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

import msgspec

from iii_core.project.block import suggest

if TYPE_CHECKING:
    from iii_core.project.block import Block

_TYPES: Final = {
    "`int`": "a whole number",
    "`float`": "a number",
    "`str`": "text",
    "`bool`": "true or false",
    "`array`": "a list",
    "`object`": "a mapping",
    "`null`": "nothing",
}


class Configurable(Protocol):
    """A record with settings."""

    @property
    def name(self) -> str:
        """The provider's name."""
        ...

    @property
    def config(self) -> type[msgspec.Struct]:
        """The type of its settings."""
        ...


R = TypeVar("R", bound=Configurable)


def provider_settings(
    block: Block, records: Mapping[str, R], environ: Mapping[str, str], *, what: str, path: tuple[str, ...] = ()
) -> dict[str, dict[str, Any]]:
    """The settings of each provider that ``block`` has a mapping for (below ``path``), as plain data.

    Args:
        block: a part of config.yaml, variables not replaced.
        records: the providers that there are.
        environ: for variables.
        what: what they are called in errors, such as ``sandbox backend``.

    Raises `UnknownKey` for a provider or a key that does not exist, `ConfigError` for what is of the wrong type, with
    file and line; `UnsetVariable`.
    """
    block = block.expanded(environ)
    data: Any = block.data
    for key in path:
        data = data.get(key) or {}
    given = _mapping(block, path, data)
    for name in given:
        if name not in records:
            raise _no_such_provider(block, (*path, name), name, list(records), what)
    return {name: _checked(block, (*path, name), value, records[name].config) for name, value in given.items()}


def convert_settings(settings: Mapping[str, Any], record: Configurable) -> Any:
    """Checked settings as the provider's own type."""
    return msgspec.convert(dict(settings), record.config)


def in_words(message: str) -> tuple[str, str]:
    """msgspec's complaint, such as "Expected `int`, got `str` - at `$.port`", for people who write YAML, and where."""
    message, _, path = message.partition(" - at `$")
    for name, words in _TYPES.items():
        message = message.replace(name, words)
    return f"{message[0].lower()}{message[1:]}", path.rstrip("`")


def _checked(block: Block, path: tuple[str, ...], value: Any, kind: type[msgspec.Struct]) -> dict[str, Any]:
    settings = _mapping(block, path, value)
    block.check_keys(path, settings, [field.encode_name for field in msgspec.structs.fields(kind)])
    try:
        msgspec.convert(settings, kind)
    except msgspec.ValidationError as error:
        words, below = in_words(str(error))
        inner = below.removeprefix(".").partition(".")[0].partition("[")[0]
        place = (*path, inner) if inner else path
        raise block.error(place, f"{block.name(place)}: {words}") from None
    return settings


def _mapping(block: Block, path: tuple[str, ...], value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise block.error(path, f"{block.name(path)} must be a mapping")
    return dict(cast("Mapping[str, Any]", value))


def _no_such_provider(block: Block, path: tuple[str, ...], name: str, known: list[str], what: str) -> Exception:
    from iii_core.errors import UnknownKey

    hint = suggest(name, sorted(known)).replace("known keys", "installed")
    return block.error(path, f"there is no {what} {name!r}", hint=hint, kind=UnknownKey)

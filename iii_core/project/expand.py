"""``${NAME}`` and ``${NAME:default}`` in settings, expanded after parsing (spec worker-cli §2.1).

The original expands the raw text before parsing, so that a value holding ``: `` or ``#`` changes the structure of the
file. Here only text leaves are expanded, and what comes out of a variable is never parsed as YAML structure.

``$${`` is a literal ``${``: what others have written, such as an image's ``ENV``, is escaped before it goes into the
file (`escape`), and reads nothing out of the environment.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from iii_core import __version__
from iii_core.errors import UnsetVariable
from iii_core.project.read import resolve_plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iii_core.project.read import Data

_PLACEHOLDER = re.compile(r"\$\{([^{}:\s]+)(?::([^}]*))?\}")
_TOKEN = re.compile(rf"\$(\$\{{)|{_PLACEHOLDER.pattern}")
_VERSION_DEFAULT: Final = "__III_ENGINE_VERSION__"


def expand(value: Data, environ: Mapping[str, str], *, owner: str, typed: bool = True) -> Any:
    """Give ``value`` (plain data) with its variables replaced; the input is not changed.

    Args:
        value: data of a config file; keys are not expanded.
        environ: where variables are looked up. A default is everything up to the closing brace.
        owner: who is to blame in error messages, such as ``worker 'thumbs'``.
        typed: a leaf that is one placeholder and nothing else becomes a number or a boolean where it looks like one.
            Off for values that end up as environment variables, whose exact text matters.

    Raises `UnsetVariable` for a variable that is neither set nor has a default. Values never appear in errors.
    """
    if isinstance(value, str):
        return _expand_text(value, environ, owner, typed)
    if isinstance(value, dict):
        return {key: expand(item, environ, owner=owner, typed=typed) for key, item in value.items()}
    if isinstance(value, list):
        return [expand(item, environ, owner=owner, typed=typed) for item in value]
    return value


def escape(text: str) -> str:
    """What `expand` gives ``text`` for, whatever is in it."""
    return text.replace("${", "$${")


def _expand_text(text: str, environ: Mapping[str, str], owner: str, typed: bool) -> Any:
    def replace(match: re.Match[str]) -> str:
        literal, name, default = match.groups()
        if literal is not None:
            return literal
        if name in environ:
            return environ[name]
        if default is not None:
            return __version__ if default == _VERSION_DEFAULT else default
        raise UnsetVariable(
            f"{owner} needs the environment variable {name}, which is not set",
            hint=f"set {name}, or give it a default in config.yaml: ${{{name}:default}}",
            details={"owner": owner, "variable": name},
        )

    expanded = _TOKEN.sub(replace, text)
    if typed and _PLACEHOLDER.fullmatch(text):
        coerced = resolve_plain(expanded)
        return expanded if coerced is None else coerced
    return expanded

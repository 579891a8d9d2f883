"""The plugin host: finds plugins, keeps what they declare, and remembers who declared it.

One `PluginHost` belongs to one program (there is no global one). It is tolerant: a plugin that cannot be imported, or
that breaks a rule, is left out with one warning that names its distribution, and everything else works on. Only a name
that two plugins both claim is an error: silently preferring one would make behaviour depend on installation order.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pluggy

from iii_core import hookspecs
from iii_core.errors import PluginCollision, PluginError
from iii_core.records import Check, Command, InProcessWorker, Record, RegistryResolver, SandboxBackend, Transport

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from importlib.metadata import EntryPoint

ENTRY_POINT_GROUP = "iii"
DISABLE_VARIABLE = "III_DISABLE_PLUGINS"

HOOK_OF_KIND: Mapping[type[Record], str] = {
    Command: "iii_commands",
    RegistryResolver: "iii_registry_resolvers",
    SandboxBackend: "iii_sandbox_backends",
    Transport: "iii_transports",
    InProcessWorker: "iii_workers",
    Check: "iii_checks",
}

Status = Literal["loaded", "disabled", "failed"]
R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginInfo:
    """One plugin as ``iii plugins list`` shows it.

    ``name`` is the entry point's name; ``distribution`` and ``version`` say what to upgrade or uninstall.
    """

    name: str
    distribution: str
    version: str
    status: Status
    error: str | None = None

    @property
    def origin(self) -> str:
        """How messages name this plugin."""
        return f"{self.name!r} of {self.distribution} {self.version}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """A record together with the plugin that yielded it."""

    record: Record
    plugin: PluginInfo


class PluginHost:
    """The plugins of one program. Not thread-safe; nothing here waits."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT_NAME)
        self._manager.add_hookspecs(hookspecs)
        self._plugins: dict[str, PluginInfo] = {}

    @classmethod
    def create(
        cls,
        *,
        installed: bool = True,
        plugins: Sequence[object] = (),
        disable: Iterable[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> PluginHost:
        """A host with what is installed and what the program brings along.

        Args:
            installed: whether to look at installed distributions (``--no-plugins`` says no).
            plugins: further plugin modules or objects, of an embedding program.
            disable: entry point or distribution names to leave out.
            environ: where ``III_DISABLE_PLUGINS`` (comma-separated names, or ``*``) is read from.

        Raises:
            PluginError: one of ``plugins`` breaks a rule (installed ones never raise; see `plugins`).
        """
        host = cls()
        for plugin in plugins:
            name = str(getattr(plugin, "__name__", type(plugin).__name__))
            host._admit(plugin, PluginInfo(name=name, distribution="this program", version="", status="loaded"))
        if installed:
            wanted = (environ or {}).get(DISABLE_VARIABLE, "")
            blocked = {*disable, *(part.strip() for part in wanted.split(",") if part.strip())}
            host._discover(blocked)
        return host

    @property
    def plugins(self) -> tuple[PluginInfo, ...]:
        """Every plugin met, in order of name, the broken and disabled ones too."""
        return tuple(sorted(self._plugins.values(), key=lambda info: (info.name, info.distribution)))

    def collect(self, kind: type[R]) -> dict[str, R]:
        """The records of one kind by name.

        A plugin whose hook raises or yields something else is marked failed and left out.

        Raises:
            PluginCollision: two plugins claim a name; both distributions are named.
        """
        return _by_name(kind, self.declared(kind))

    def find(self, kind: type[R], name: str) -> R | None:
        """The record of one kind and name, or None; other names may collide.

        Raises:
            PluginCollision: two plugins claim this name.
        """
        return _by_name(kind, [item for item in self.declared(kind) if item.record.name == name]).get(name)

    def declared(self, kind: type[Record]) -> list[Declared]:
        """The records of one kind with their plugins, in order of registration, collisions included."""
        hook: pluggy.HookCaller = getattr(self._manager.hook, HOOK_OF_KIND[kind])
        found: list[Declared] = []
        for implementation in hook.get_hookimpls():
            info = self._plugins[implementation.plugin_name]
            if info.status == "loaded":
                found += self._call(implementation, kind, info)
        return found

    def _call(self, implementation: pluggy.HookImpl, kind: type[Record], info: PluginInfo) -> list[Declared]:
        try:
            result: Any = implementation.function()
            records: list[object] = list(result or ())
            for record in records:
                if not isinstance(record, kind):
                    raise PluginError(f"{implementation.function.__name__} yielded {record!r}, not a {kind.__name__}")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: ASYNC103 - a plugin's own fault must not end the program, not even sys.exit()
            self._fail(implementation.plugin_name, error)
            return []  # noqa: ASYNC104
        return [Declared(record=record, plugin=info) for record in records if isinstance(record, kind)]

    def _discover(self, blocked: set[str]) -> None:
        # importlib.metadata costs tens of milliseconds to import and scan; programs that bring their plugins skip it.
        from importlib.metadata import entry_points

        for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name):
            distribution = entry.dist.name if entry.dist else "an unknown distribution"
            version = entry.dist.version if entry.dist else ""
            info = PluginInfo(name=entry.name, distribution=distribution, version=version, status="loaded")
            if blocked & {entry.name, distribution, "*"}:
                self._plugins[_key(info)] = replace(info, status="disabled")
            else:
                self._load(entry, info)

    def _load(self, entry: EntryPoint, info: PluginInfo) -> None:
        self._plugins[_key(info)] = info
        try:
            self._admit(entry.load(), info)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: ASYNC103 - whatever a broken plugin does at import is its own fault
            self._fail(_key(info), error)

    def _admit(self, plugin: object, info: PluginInfo) -> None:
        """Register after checking the rules that pluggy does not enforce.

        Raises:
            PluginError: an ``async def`` or wrapping implementation, an unknown hook, or a wrong signature.
        """
        known = set(HOOK_OF_KIND.values())
        for attribute in dir(plugin):
            options = self._manager.parse_hookimpl_opts(plugin, attribute)
            if options is None:
                continue
            function = getattr(plugin, attribute)
            hook = options.get("specname") or attribute
            if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
                raise PluginError(
                    f"plugin {info.origin}: {attribute} is 'async def'",
                    hint="hooks are plain functions that yield records; async work belongs into the record's open()",
                )
            if options.get("wrapper") or options.get("hookwrapper"):
                raise PluginError(f"plugin {info.origin}: {attribute} is a wrapper", hint="iii hooks cannot be wrapped")
            if hook not in known:
                raise PluginError(
                    f"plugin {info.origin}: there is no hook {hook!r}", hint=f"hooks are {', '.join(sorted(known))}"
                )
        self._plugins[_key(info)] = info
        try:
            self._manager.register(plugin, name=_key(info))
        except (ValueError, pluggy.PluginValidationError) as error:
            raise PluginError(f"plugin {info.origin}: {error}") from error

    def _fail(self, key: str, error: BaseException) -> None:
        self._plugins[key] = replace(self._plugins[key], status="failed", error=_words(error))


def _by_name(kind: type[R], declarations: Iterable[Declared]) -> dict[str, R]:
    found: dict[str, Declared] = {}
    for declared in declarations:
        other = found.setdefault(declared.record.name, declared)
        if other is not declared:
            raise PluginCollision(
                f"two plugins declare the {kind.__name__} {declared.record.name!r}: "
                f"{other.plugin.origin} and {declared.plugin.origin}",
                hint=f"uninstall one of them, or name one in {DISABLE_VARIABLE}",
                details={"name": declared.record.name, "plugins": [other.plugin.name, declared.plugin.name]},
            )
    return {name: entry.record for name, entry in found.items() if isinstance(entry.record, kind)}


def _words(error: BaseException) -> str:
    """What a plugin raised; its class is a plugin's code too, and may raise when it is asked for its text."""
    if isinstance(error, PluginError):
        return error.message
    kind = type(error).__name__
    try:
        return f"{kind}: {error}"
    except KeyboardInterrupt:
        raise
    except BaseException as another:  # noqa: ASYNC103 - nothing here is cancelled: no event loop runs yet
        return f"{kind} (its text cannot be had: {type(another).__name__})"  # noqa: ASYNC104


def _key(info: PluginInfo) -> str:
    return f"{info.distribution}:{info.name}"

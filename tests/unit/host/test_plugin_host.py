"""The plugin host keeps working whatever a plugin does, and says whose fault it was."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from iii_core import hookimpl
from iii_core.errors import PluginCollision, PluginError
from iii_core.host import HOOK_OF_KIND, PluginHost
from iii_core.records import Check, Command, InProcessWorker, RegistryResolver, SandboxBackend, Transport

if TYPE_CHECKING:
    from pathlib import Path


def plugin(name: str, **hooks: Any) -> ModuleType:
    module = ModuleType(name)
    for hook, function in hooks.items():
        function.__name__ = hook
        setattr(module, hook, hookimpl(function))
    return module


def command(name: str) -> Command:
    return Command(name=name, help="h", load=lambda: None)


def commands(*names: str) -> Any:
    def iii_commands() -> Any:
        yield from (command(name) for name in names)

    return iii_commands


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A function that makes a module look like an installed plugin of a distribution of its own."""
    entries: list[EntryPoint] = []

    def install(name: str, source: str, distribution: str | None = None) -> None:
        distribution = distribution or f"dist-{name}"
        (tmp_path / f"mod_{name}.py").write_text(f"from iii_core import hookimpl\n{source}")
        info = tmp_path / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        with (info / "entry_points.txt").open("a") as file:
            file.write(f"[iii]\n{name} = mod_{name}\n")
        sys.modules.pop(f"mod_{name}", None)
        entries.append(EntryPoint(name, f"mod_{name}", "iii"))

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(p for p in sys.path if not p.endswith("site-packages"))])
    return install


COMMAND = """
from iii_core.records import Command
@hookimpl
def iii_commands():
    yield Command(name={name!r}, help="h", load=lambda: None)
"""


def test_records_come_back_by_name() -> None:
    host = PluginHost.create(installed=False, plugins=[plugin("a", iii_commands=commands("x", "y"))])
    assert list(host.collect(Command)) == ["x", "y"]
    assert host.collect(Transport) == {}


@pytest.mark.parametrize("kind", [Command, RegistryResolver, SandboxBackend, Transport, InProcessWorker, Check])
def test_every_kind_has_its_hook(kind: type) -> None:
    """iii_commands, iii_registry_resolvers, iii_sandbox_backends, iii_transports, iii_workers, iii_checks."""
    record = object.__new__(kind)
    object.__setattr__(record, "name", "it")
    host = PluginHost.create(installed=False, plugins=[plugin("a", **{HOOK_OF_KIND[kind]: lambda: [record]})])
    assert host.collect(kind) == {"it": record}


def test_a_collision_names_both_plugins() -> None:
    host = PluginHost.create(
        installed=False,
        plugins=[plugin("one", iii_commands=commands("x")), plugin("two", iii_commands=commands("x"))],
    )
    with pytest.raises(PluginCollision, match=r"'one'.*'two'") as caught:
        host.collect(Command)
    assert caught.value.code == "W211"
    assert caught.value.details["name"] == "x"


def test_one_record_is_found_whatever_else_collides() -> None:
    host = PluginHost.create(
        installed=False,
        plugins=[plugin("one", iii_commands=commands("x", "y")), plugin("two", iii_commands=commands("x"))],
    )
    found = host.find(Command, "y")
    assert found is not None
    assert found.name == "y"
    assert host.find(Command, "z") is None
    with pytest.raises(PluginCollision, match=r"'one'.*'two'"):
        host.find(Command, "x")


def test_async_hooks_are_refused_by_name() -> None:
    async def iii_commands() -> Any: ...

    with pytest.raises(PluginError, match="iii_commands is 'async def'"):
        PluginHost.create(installed=False, plugins=[plugin("a", iii_commands=iii_commands)])


def test_unknown_hooks_wrappers_and_wrong_signatures_are_refused() -> None:
    with pytest.raises(PluginError, match="no hook 'iii_comands'"):
        PluginHost.create(installed=False, plugins=[plugin("a", iii_comands=commands("x"))])

    def wrapping() -> Any:
        return (yield)

    module = ModuleType("a")
    wrapping.__name__ = "iii_commands"
    module.iii_commands = hookimpl(wrapper=True)(wrapping)  # type: ignore[attr-defined]
    with pytest.raises(PluginError, match="wrapper"):
        PluginHost.create(installed=False, plugins=[module])
    with pytest.raises(PluginError, match="surplus"):
        PluginHost.create(installed=False, plugins=[plugin("a", iii_commands=lambda surplus: ())])


@pytest.mark.parametrize(
    "source",
    [
        "raise ModuleNotFoundError('no libthing')",
        "import sys; sys.exit(3)",
        "@hookimpl\nasync def iii_commands():\n    pass",
        "@hookimpl\ndef iii_misspelt():\n    pass",
        "@hookimpl\ndef iii_commands():\n    yield 'not a record'",
        "@hookimpl\ndef iii_commands():\n    yield from ()\n    raise OSError('late')",
        "from iii_core.records import Command\n@hookimpl\ndef iii_commands():\n"
        "    yield Command(name='Bad Name', help='h', load=print)",
    ],
)
def test_one_broken_plugin_is_a_status_not_an_end(installed: Any, source: str) -> None:
    installed("broken", source)
    installed("good", COMMAND.format(name="fine"))
    host = PluginHost.create()
    assert list(host.collect(Command)) == ["fine"]
    status = {info.name: info for info in host.plugins}
    assert status["good"].status == "loaded"
    assert status["broken"].status == "failed"
    assert status["broken"].error
    assert "dist-broken 1.2" in status["broken"].origin


@pytest.mark.parametrize("switch", ["one", "dist-one", "*", " other , one "])
def test_disabled_plugins_are_not_even_imported(installed: Any, switch: str) -> None:
    installed("one", "raise SystemExit('imported')")
    host = PluginHost.create(environ={"III_DISABLE_PLUGINS": switch})
    assert [(info.name, info.status) for info in host.plugins] == [("one", "disabled")]


def test_no_plugins_looks_at_nothing(installed: Any) -> None:
    installed("one", COMMAND.format(name="x"))
    assert PluginHost.create(installed=False).plugins == ()
    assert [info.name for info in PluginHost.create(disable=["two"]).plugins] == ["one"]


def test_two_entry_points_may_share_a_name_across_distributions(installed: Any) -> None:
    installed("a", COMMAND.format(name="x"))
    installed("b", COMMAND.format(name="x"))
    host = PluginHost.create()
    with pytest.raises(PluginCollision, match=r"dist-a 1\.2.*dist-b 1\.2"):
        host.collect(Command)
    assert {info.status for info in host.plugins} == {"loaded"}

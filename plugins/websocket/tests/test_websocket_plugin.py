"""The plugin as the host sees it."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest
from iii_plugin_websocket import plugin

from iii_core.host import PluginHost
from iii_core.records import Transport


def test_it_is_installed_and_declares_one_transport() -> None:
    (record,) = (r for r in PluginHost.create().collect(Transport).values() if r.name == "websocket")
    assert record.schemes == ("ws", "wss")
    assert record.config is plugin.Settings


def test_importing_it_is_cheap() -> None:
    heavy = {"trio", "h11", "wsproto", "trio_websocket"}
    program = (
        f"import sys, iii_plugin_websocket.plugin as p; list(p.iii_transports()); print({heavy} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("settings", [{"max_connections": 0}, {"max_pending_handshakes": "many"}, {"unknown": 1}])
def test_settings_are_checked(settings: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(settings, plugin.Settings)

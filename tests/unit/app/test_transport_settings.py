"""``transports:`` of config.yaml: every listener of that transport has its settings, and mistakes are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from iii_core.app.settings import engine_config
from iii_core.engine import EngineConfig
from iii_core.errors import ConfigError, UnknownKey
from iii_core.host import PluginHost
from iii_core.project.config import parse_config
from iii_core.project.read import parse_document
from iii_core.records import Transport

pytestmark = pytest.mark.usefixtures("transport")


def config_of(text: str) -> EngineConfig:
    config = parse_config(parse_document(text, name="config.yaml"))
    transports = PluginHost.create().collect(Transport)
    return engine_config(config, {"MANY": "7"}, {}, Path("/p"), transports)


def test_they_reach_all_listeners() -> None:
    found = config_of(
        "transports:\n  websocket: {max_connections: '${MANY}'}\n"
        "workers:\n- {name: iii-worker-manager, config: {port: 1}}\n- {name: iii-worker-manager, config: {port: 2}}\n"
    )
    assert [(one.port, one.options) for one in found.listeners] == [
        (1, {"max_connections": 7}),
        (2, {"max_connections": 7}),
    ]
    assert config_of("transports: {websocket: {ca_file: x}}").listeners[0].options == {"ca_file": "x"}
    assert config_of("workers: []").listeners[0].options == {}


@pytest.mark.parametrize(
    ("text", "kind", "told"),
    [
        ("transports:\n  websockt: {}", UnknownKey, "config.yaml:2: there is no transport 'websockt'"),
        ("transports:\n  websocket:\n    max_conections: 1", UnknownKey, "config.yaml:3: unknown key 'max_conections'"),
        ("transports: {websocket: {max_connections: 0}}", ConfigError, "config.yaml:1: 'websocket.max_connections'"),
    ],
)
def test_a_mistake_is_told_with_its_line(text: str, kind: type[ConfigError], told: str) -> None:
    with pytest.raises(kind) as caught:
        config_of(text)
    assert caught.value.message.startswith(told)

"""Settings of providers in config.yaml: they reach the provider, and mistakes are told with their line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import pytest

from iii_core.errors import ConfigError, UnknownKey
from iii_core.project.config import parse_config
from iii_core.project.provider_settings import convert_settings, provider_settings
from iii_core.project.read import parse_document


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    program: str = "qemu"
    cores: Annotated[int, msgspec.Meta(ge=1)] = 1


@dataclass(frozen=True)
class Record:
    name: str
    config: type[msgspec.Struct] = Settings


RECORDS = {"libvirt": Record("libvirt"), "bubblewrap": Record("bubblewrap")}


def read(text: str, **environ: str) -> Mapping[str, Mapping[str, Any]]:
    config = parse_config(parse_document(text, name="config.yaml"))
    return provider_settings(config.sandbox, RECORDS, environ, what="sandbox backend", path=("backends",))


def test_they_reach_the_provider() -> None:
    found = read("sandbox:\n  backends:\n    libvirt: {cores: '${N}', program: x}\n    bubblewrap:\n", N="4")
    assert found == {"libvirt": {"cores": 4, "program": "x"}, "bubblewrap": {}}
    assert convert_settings(found["libvirt"], RECORDS["libvirt"]) == Settings(program="x", cores=4)
    assert read("workers: []\n") == {}
    assert read("sandbox: {cpus: 1}\n") == {}


@pytest.mark.parametrize(
    ("text", "kind", "told", "hint"),
    [
        ("  backends: 5", ConfigError, "config.yaml:2: 'backends' in sandbox must be a mapping", ""),
        ("  backends:\n    libvrt: {}", UnknownKey, "config.yaml:3: there is no sandbox backend 'libvrt'", "libvirt"),
        ("  backends:\n    zzz: {}", UnknownKey, "config.yaml:3: there is no", "installed: bubblewrap"),
        ("  backends:\n    libvirt: 1", ConfigError, "config.yaml:3: 'backends.libvirt' in sandbox must be", ""),
        (
            "  backends:\n    libvirt:\n      core: 1",
            UnknownKey,
            "config.yaml:4: unknown key 'core' in 'backends.libvirt' in sandbox",
            "did you mean 'cores'?",
        ),
        (
            "  backends:\n    libvirt:\n      program: x\n      cores: lots",
            ConfigError,
            "config.yaml:5: 'backends.libvirt.cores' in sandbox: expected a whole number, got text",
            "correct line 5 of config.yaml",
        ),
        ("  backends: {libvirt: {cores: 0}}", ConfigError, "config.yaml:2: 'backends.libvirt.cores'", ""),
    ],
)
def test_a_mistake_is_told_with_its_line(text: str, kind: type[ConfigError], told: str, hint: str) -> None:
    with pytest.raises(kind) as caught:
        read(f"sandbox:\n{text}\n")
    assert caught.value.message.startswith(told)
    assert hint in (caught.value.hint or "")

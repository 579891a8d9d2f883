"""The model of config.yaml."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from iii_core.errors import ConfigError, ConfigIoError, UnknownKey
from iii_core.project.config import ProjectConfig, Resources, load_config, manager_port, parse_config
from iii_core.project.create import create_config
from iii_core.project.locate import locate_project
from iii_core.project.read import parse_document


def parse(text: str) -> ProjectConfig:
    return parse_config(parse_document(text, name="config.yaml"))


def test_everything() -> None:
    config = parse(
        """\
sandbox: {backend: bubblewrap, pids: 100}
rootfs: {mode: overlay}
registries: {oci: {insecure: [localhost]}}
transports: {websocket: {max_connections: 5}}
registration_namespace_grace_ms: 5
workers:
  - name: iii-http
    config: {port: 3111, host: 127.0.0.1}
  - name: thumbs
    image: ghcr.io/acme/thumbs:1.4.0
    config:
      LOG_LEVEL: debug
      s3: {bucket: pics, retries: 3, tags: [a, b]}
      API_KEY: ${THUMBS_KEY:none}
    env: {DEBUG: true, N: 5, S: "x", VERSION: 1.10}
    resources: {cpus: 0.5, memory: 512Mi}
    sandbox: {backend: none}
    namespace: blue
  - {worker_path: /home/me/math, name: 'math'}
"""
    )
    http, thumbs, math = config.workers
    assert (http.kind, http.managed, http.config) == ("engine", False, {"port": 3111, "host": "127.0.0.1"})
    assert (thumbs.kind, thumbs.managed, thumbs.line) == ("oci", True, 9)
    assert thumbs.config == {
        "LOG_LEVEL": "debug",
        "s3": {"bucket": "pics", "retries": 3, "tags": ["a", "b"]},
        "API_KEY": "${THUMBS_KEY:none}",
    }
    assert thumbs.env == {"DEBUG": "true", "N": "5", "S": "x", "VERSION": "1.10"}
    assert thumbs.resources == Resources(cpus=0.5, memory_mib=512)
    assert (thumbs.sandbox.data, thumbs.namespace) == ({"backend": "none"}, "blue")
    assert (math.name, math.kind, math.worker_path) == ("math", "local", "/home/me/math")
    assert config.sandbox.data == {"backend": "bubblewrap", "pids": 100}
    assert config.registries.data == {"oci": {"insecure": ["localhost"]}}
    assert config.find("thumbs") is thumbs
    assert config.find("nobody") is None


@pytest.mark.parametrize("text", ["", "# c\n", "workers:\n", "workers: []\n", "workers: ~\nsandbox:\n"])
def test_nothing(text: str) -> None:
    assert parse(text).workers == ()


def test_secrets_are_not_shown() -> None:
    config = parse("workers: [{name: x, image: a/b, config: {K: canary}, env: {S: canary}, sandbox: {t: canary}}]")
    assert "canary" not in repr(config)


def test_legacy_modules_come_after() -> None:
    config = parse("modules:\n  - class: modules::api::RestApiModule\n    config: {port: 1}\nworkers:\n  - name: x\n")
    assert [entry.name for entry in config.workers] == ["x", "modules::api::RestApiModule"]


def test_several_instances_of_an_engine_worker() -> None:
    config = parse("workers:\n  - name: iii-worker-manager\n  - name: iii-worker-manager\n    config: {port: 5}\n")
    assert [entry.config for entry in config.workers] == [None, {"port": 5}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("worker: []", "config.yaml:1: unknown key 'worker' in config.yaml"),
        ("workers:\n  - name: x\n    imgae: a/b", "config.yaml:3: unknown key 'imgae' in a worker"),
        (
            "workers:\n  - name: x\n    resources: {cpu: 1}",
            "config.yaml:3: unknown key 'cpu' in 'resources' of worker 'x'",
        ),
        ("a: &a {bogus: 1}\n", "unknown key 'a' in config.yaml"),
        ("sandbox: &a {bogus: 1}\nworkers:\n  - {<<: *a, name: x}", "config.yaml:1: unknown key 'bogus' in a worker"),
    ],
)
def test_unknown_keys(text: str, message: str) -> None:
    with pytest.raises(UnknownKey) as caught:
        parse(text)
    assert message in caught.value.message
    assert caught.value.hint


def test_did_you_mean() -> None:
    with pytest.raises(UnknownKey) as caught:
        parse("workers:\n  - name: x\n    imgae: a/b")
    assert caught.value.hint == "did you mean 'image'?"
    with pytest.raises(UnknownKey) as caught:
        parse("zzz: 1")
    assert "known keys: workers" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", ":1: config.yaml must be a mapping, not a list"),
        ("text", ":1: config.yaml must be a mapping, not text"),
        ("workers: {name: x}", ":1: workers must be a list of workers, not a mapping"),
        ("workers: 5", "must be a list of workers, not 5"),
        ("workers:\n  - just-a-name", ":2: a worker must be a mapping with a name"),
        ("workers:\n  - [a]", ":2: a worker must be a mapping, not a list"),
        ("workers:\n  - image: a/b", ":2: a worker needs a 'name'"),
        ("workers:\n  - name:", ":2: a worker needs a 'name'"),
        ("workers:\n  - name: [a]", ":2: name must be text, not a list"),
        ("workers:\n  - name: true", ":2: name must be text, not True"),
        ("workers:\n  - name: ../etc", ":2: Worker name '../etc' contains invalid characters"),
        ("workers:\n  - name: .x", ":2: Worker name '.x' starts with '.'"),
        ("workers:\n  - name: x\n    image: {a: b}", ":3: 'image' of worker 'x' must be text, not a mapping"),
        ("workers:\n  - name: x\n    config: [1]", ":3: 'config' of worker 'x' must be a mapping, not a list"),
        ("workers:\n  - name: x\n    env: {A: [1]}", ":3: 'A' in 'env' of worker 'x' must be text or a number"),
        (
            "workers:\n  - name: x\n    resources: {memory: lots}",
            ":3: 'memory' in 'resources' of worker 'x': expected MiB",
        ),
        ("workers:\n  - name: x\n    resources: {cpus: 0}", "expected more than nothing"),
        ("workers:\n  - name: x\n    resources: {cpus: true}", "expected a number of cores"),
        ("workers:\n  - name: x\n    image: a/b\n  - name: x", ":4: worker 'x' is here already, on line 2"),
        ("workers:\n  - name: x\nmodules:\n  - name: x\n    image: a/b", "worker 'x' is here already"),
    ],
)
def test_wrong_types(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("port", "environ", "expected"),
    [
        ("port: 5000", {}, 5000),
        ("port: ${P}", {"P": "6000"}, 6000),
        ("port: ${P:7000}", {}, 7000),
        ("port: ${P}", {}, 49134),
        ("port: nonsense", {}, 49134),
        ("port: 0", {}, 49134),
        ("port: 70000", {}, 49134),
        ("host: h", {}, 49134),
    ],
)
def test_manager_port(port: str, environ: dict[str, str], expected: int) -> None:
    text = f"workers:\n  - name: iii-worker-manager\n    config:\n      {port}\n"
    assert manager_port(parse(text), environ) == expected
    assert manager_port(parse("workers: []"), environ) == 49134


def test_files(tmp_path: Path) -> None:
    project = locate_project(cwd=tmp_path, environ={"HOME": str(tmp_path)})
    with pytest.raises(ConfigIoError):
        load_config(project)
    assert create_config(project)
    assert not create_config(project)
    assert load_config(project).workers == ()
    assert project.config_path.read_text().startswith("# Workers of this project.")


def test_default_workers_join_those_of_the_file(tmp_path: Path) -> None:
    project = replace(locate_project(cwd=tmp_path, environ={}), default_workers=("iii-http", "iii-state"))
    assert [entry.name for entry in load_config(project).workers] == ["iii-http", "iii-state"]
    project.config_path.write_text("workers:\n  - name: iii-state\n    config: {a: 1}\n")
    assert [(entry.name, entry.config) for entry in load_config(project).workers] == [
        ("iii-state", {"a": 1}),
        ("iii-http", None),
    ]

"""From config.yaml to what is run: precedence, variables, and mistakes that stay one worker's trouble."""

from __future__ import annotations

from pathlib import Path

import pytest

from iii_core.errors import UnknownKey
from iii_core.project.config import parse_config
from iii_core.project.read import parse_document
from iii_core.project.sandbox_settings import Places, PublishedPort, UserIds
from iii_core.sandbox.port import Egress, Limits, Mount
from iii_core.workers.declare import managed_specs
from iii_core.workers.spec import WorkerSpec

PLACES = Places(project=Path("/srv/project"), user_home=Path("/home/me"), private=(Path("/srv/project/.iii"),))


def specs(text: str, **environ: str) -> dict[str, WorkerSpec]:
    return managed_specs(parse_config(parse_document(text, name="config.yaml")), environ, places=PLACES)


def test_only_managed_workers_have_specs_and_config_becomes_environment() -> None:
    found = specs(
        """
workers:
  - name: iii-http
    config: {port: 3111}
  - name: thumbs
    image: ghcr.io/acme/thumbs:1.4.0
    env: {PLAIN: 007}
    config:
      LOG_LEVEL: debug
      s3: {bucket: pics, retries: 3, tags: [a, b]}
      API_KEY: ${THUMBS_KEY:none}
""",
        THUMBS_KEY="0123",
    )
    assert list(found) == ["thumbs"]
    assert found["thumbs"].env == {
        "PLAIN": "007",
        "LOG_LEVEL": "debug",
        "S3_BUCKET": "pics",
        "S3_RETRIES": "3",
        "S3_TAGS": '["a","b"]',
        "API_KEY": "0123",
    }
    assert found["thumbs"].source == "ghcr.io/acme/thumbs:1.4.0"
    assert found["thumbs"].backend == "auto"
    assert found["thumbs"].problem is None


def test_an_unset_variable_is_the_trouble_of_one_worker() -> None:
    found = specs("workers:\n- {name: a, image: x/a, config: {K: '${NOPE}'}}\n- {name: b, image: x/b}\n")
    problem = found["a"].problem
    assert problem is not None
    assert problem.code == "W133"
    assert "NOPE" in problem.message
    assert "'a'" in problem.message
    assert found["b"].problem is None


def test_precedence_of_limits_and_backend() -> None:
    """What the project says comes after the image's hints, and so stays apart (`WorkerSpec.fallback`)."""
    found = specs(
        """
sandbox: {backend: shared, cpus: 1, memory: 1Gi, pids: 10, disk: 1Gi}
workers:
- {name: a, image: x/a}
- {name: b, image: x/b, resources: {cpus: 3, memory: 512}}
- {name: c, image: x/c, resources: {cpus: 3}, sandbox: {backend: own, cpus: 0.5, memory: "${M}", disk: 64}}
""",
        M="256",
    )
    assert found["a"].fallback == Limits(cpus=1, memory_mib=1024, pids=10, disk_mib=1024)
    assert (found["a"].limits, found["a"].backend) == (Limits(disk_mib=1024), "shared")
    assert found["b"].limits == Limits(cpus=3, memory_mib=512, disk_mib=1024)
    assert (found["c"].limits, found["c"].backend) == (Limits(cpus=0.5, memory_mib=256, disk_mib=64), "own")


def test_precedence_of_what_a_sandbox_may_reach() -> None:
    found = specs(
        """
sandbox: {network: egress, mounts: ["data:/data"], user: 7}
workers:
- {name: a, image: x/a}
- name: b
  image: x/b
  sandbox: {network: none, mounts: [], user: root, ports: ["8080:80"]}
"""
    )
    data = Mount(source=Path("/srv/project/data"), target="/data")
    assert (found["a"].egress, found["a"].mounts, found["a"].user) == (Egress(), (data,), UserIds(uid=7, gid=7))
    assert (found["b"].egress, found["b"].mounts, found["b"].user) == (None, (), UserIds(uid=0, gid=0))
    assert (found["a"].ports, found["b"].ports) == ((), (PublishedPort(host=8080, guest=80),))


def test_a_wrong_block_of_the_project_is_an_error_of_the_file() -> None:
    with pytest.raises(UnknownKey, match=r"config.yaml:3: unknown key 'memroy' in sandbox") as caught:
        specs("sandbox:\n  cpus: 1\n  memroy: 5\n")
    assert caught.value.hint == "did you mean 'memory'?"


@pytest.mark.parametrize(
    ("block", "code"),
    [
        ("{memry: 5}", "W132"),
        ("{memory: lots}", "W131"),
        ("{cpus: -1}", "W131"),
        ("{pids: 1}", "W131"),
        ("{pids: yes please}", "W131"),
        ("{backend: [a]}", "W131"),
    ],
)
def test_a_wrong_sandbox_block_is_an_error_never_ignored(block: str, code: str) -> None:
    problem = specs(f"workers:\n- {{name: a, image: x/a, sandbox: {block}}}\n")["a"].problem
    assert problem is not None
    assert problem.code == code
    assert "'a'" in problem.message


def test_a_folder_says_that_nothing_runs_it_yet() -> None:
    problem = specs("workers:\n- {name: a, worker_path: /w}\n")["a"].problem
    assert problem is not None
    assert problem.code == "W212"


def test_equal_entries_are_equal_specs_wherever_they_stand() -> None:
    one = specs("workers:\n- {name: a, image: x/a, config: {K: 1}}\n")
    two = specs("# moved\nworkers:\n\n- name: a\n  config:\n    K: 1\n  image: x/a\n")
    assert one == two

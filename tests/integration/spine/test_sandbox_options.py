"""``sandbox:`` of config.yaml on bubblewrap: what the worker then sees, and what is refused."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import IIIProject
    from iiitools.registry import Registry

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]
NAME = "math-worker"
ENTER = ("worker", "exec", NAME, "--")
SERVER = """
import socket
with socket.create_server(("127.0.0.1", 8000)) as server:
    print("ready", flush=True)
    while True:
        client, _ = server.accept()
        with client:
            data = b""
            while piece := client.recv(65536):
                data += piece
            client.sendall(b"got %d bytes" % len(data))
"""


def declare(project: IIIProject, registry: Registry, sandbox: str, top: str = "") -> None:
    """Write a config.yaml whose worker has that block, on lines of its own from line 7."""
    body = "".join(f"      {line}\n" for line in sandbox.splitlines())
    project.config.write_text(
        f"workers:\n  - name: iii-worker-manager\n    config: {{port: {project.port}}}\n"
        f"  - name: {NAME}\n    image: {registry.address}/math-worker:1.0\n    sandbox:\n{body}{top}"
    )


def test_mounts_ports_and_user(project: IIIProject, registry: Registry, port: int) -> None:
    for name in ("shown", "shared"):
        (project.folder / name).mkdir(mode=0o777)
        (project.folder / name).chmod(0o777)
        (project.folder / name / "file").write_text("from outside\n")
    declare(
        project,
        registry,
        f'mounts: [shown:/shown, "./${{WHERE:shared}}:/shared:rw"]\nports: ["{port}:8000"]\nuser: 1234\npids: 100',
    )
    project.start()
    project.wait_running()
    project.wait_callable()
    project.assert_callable()

    assert project.ok(*ENTER, "sh", "-c", "id -u; cat /shown/file /shared/file").split("\n")[:3] == [
        "1234",
        "from outside",
        "from outside",
    ]
    refused = project.run(*ENTER, "sh", "-c", "echo x > /shown/new")
    assert refused.returncode != 0
    assert b"Read-only file system" in refused.stderr
    project.ok(*ENTER, "sh", "-c", "echo inside > /shared/new")
    assert (project.folder / "shared" / "new").read_text() == "inside\n"

    with socket.create_connection(("127.0.0.1", port)) as early:
        assert early.recv(1) == b"", "nobody listens inside yet"
    with project.session(*ENTER, "python3", "-c", SERVER) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"x" * 1_000_000)
            client.shutdown(socket.SHUT_WR)
            assert client.recv(100) == b"got 1000000 bytes"
            assert client.recv(100) == b""
    assert (
        f"port {port}: nobody was reached at port 8000 inside"
        in project.run("worker", "logs", NAME, "--stream", "iii").stderr.decode()
    )
    project.ok("worker", "stop", "-y", NAME)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_what_cannot_be_had_leaves_the_running_worker_as_it_was(project: IIIProject, registry: Registry) -> None:
    declare(project, registry, "pids: 100")
    project.start()
    before = project.wait_running()
    project.wait_callable()
    for block, told in (
        (
            "network: egress\nbackend: cloud-hypervisor",
            "[W236] config.yaml:7: worker 'math-worker': the sandbox backend cloud-hypervisor",
        ),
        ("backend: bublewrap", "[W212] config.yaml:7: worker 'math-worker': there is no sandbox backend 'bublewrap'"),
        ("pids: 100\nmemroy: 5", "[W132] config.yaml:8: unknown key 'memroy'"),
    ):
        declare(project, registry, f"{block}\nbackend: bubblewrap" if "backend" not in block else block)
        project.wait_said(told)
        after = project.status()
        assert (after["status"], after["pid"], after["restarts"]) == ("running", before["pid"], 0)
        assert told in " ".join(after["notes"])
        project.assert_callable()
    declare(project, registry, "pids: 100")
    after = project.wait_for(lambda facts: "not in use" not in " ".join(facts["notes"]))
    assert after["pid"] == before["pid"]


def test_a_wrong_block_of_the_project_leaves_everything_as_it_was(project: IIIProject, registry: Registry) -> None:
    declare(project, registry, "pids: 100")
    project.start()
    before = project.wait_running()
    declare(project, registry, "pids: 50", "sandbox:\n  backends:\n    bubblewrap: {progam: bwrap}\n")
    project.wait_said("[W132] config.yaml:10: unknown key 'progam' in 'backends.bubblewrap' in sandbox")
    assert project.status()["pid"] == before["pid"]


@pytest.mark.parametrize("running", [True, False])
def test_add_refuses_what_cannot_be_run_and_writes_nothing(
    project: IIIProject, registry: Registry, running: bool
) -> None:
    project.config.write_text(
        f"workers:\n  - name: iii-worker-manager\n    config: {{port: {project.port}}}\n"
        "sandbox:\n  backend: cloud-hypervisor\n  network: egress\n"
    )
    before = project.config.read_text()
    if running:
        project.start()
    done = project.run("worker", "add", f"{registry.address}/math-worker:1.0")
    assert done.returncode == 1
    assert b"[W236]" in done.stderr
    assert b"config.yaml:5: worker 'math-worker'" in done.stderr
    assert project.config.read_text() == before
    assert not (project.folder / "iii.lock").exists()


def test_settings_reach_the_backend(project: IIIProject, registry: Registry) -> None:
    declare(project, registry, "backend: bubblewrap", "sandbox:\n  backends: {bubblewrap: {program: no-such-bwrap}}\n")
    project.start()
    failed = project.wait_for(lambda facts: facts["status"] == "failed")
    assert (failed["error"]["code"], failed["error"]["message"]) == ("W231", "no-such-bwrap is not installed")
    assert project.engine_log().count("worker 'math-worker' failed: [W231] no-such-bwrap is not installed") == 1


def test_a_taken_port_is_told(project: IIIProject, registry: Registry) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        declare(project, registry, f'ports: ["{port}:80"]')
        project.start()
        found = project.wait_for(lambda facts: facts["error"])
        assert found["error"]["code"] == "W203"
        project.wait_said(f"worker 'math-worker' is started again: [W203] cannot publish port 80 at 127.0.0.1:{port}")
    project.wait_running()


def test_the_state_of_iii_is_never_shown(project: IIIProject, registry: Registry) -> None:
    declare(project, registry, "mounts: [.iii:/x]")
    project.start()
    failed = project.wait_for(lambda facts: facts["status"] == "failed")
    assert "could take over iii" in failed["error"]["message"]

"""``sandbox:`` blocks: what each key takes, and that a mistake is told with its line and never ignored."""

from __future__ import annotations

from pathlib import Path

import pytest

from iii_core.errors import ConfigError
from iii_core.project.config import parse_config
from iii_core.project.read import parse_document
from iii_core.project.sandbox_settings import (
    Network,
    Places,
    PublishedPort,
    SandboxSettings,
    UserIds,
    project_sandbox,
    worker_sandbox,
)
from iii_core.sandbox.port import Egress, Limits, Mount


def read(text: str, places: Places | None = None, **environ: str) -> SandboxSettings:
    """The settings of a worker, whose block begins on line 4."""
    body = "".join(f"    {line}\n" for line in text.splitlines())
    document = parse_document(f"workers:\n- name: w\n  sandbox:\n{body}", name="config.yaml")
    (entry,) = parse_config(document).workers
    return worker_sandbox(entry.sandbox, environ, places or Places(project=Path("/p"), user_home=Path("/home/me")))


def test_everything() -> None:
    found = read(
        """\
backend: libvirt
cpus: ${N}
memory: 512Mi
disk: 2Gi
pids: 100
network: {egress: {allow: [10.1.0.0/16, "fd00::/8"], nameservers: [10.1.0.53]}}
mounts:
- data:/data
- ./a/../b:/b:rw
- ~/pics:/pics:ro
- {source: "/srv/with:colon", target: /srv, writable: true}
ports: ["8080:80", "0.0.0.0:53:5353", "[::1]:9000:90"]
user: 1000:100
""",
        N="1.5",
    )
    assert found == SandboxSettings(
        backend="libvirt",
        limits=Limits(cpus=1.5, memory_mib=512, pids=100, disk_mib=2048),
        network=Network(egress=Egress(allow=("10.1.0.0/16", "fd00::/8"), nameservers=("10.1.0.53",))),
        mounts=(
            Mount(source=Path("/p/data"), target="/data"),
            Mount(source=Path("/p/b"), target="/b", writable=True),
            Mount(source=Path("/home/me/pics"), target="/pics"),
            Mount(source=Path("/srv/with:colon"), target="/srv", writable=True),
        ),
        ports=(
            PublishedPort(host=8080, guest=80),
            PublishedPort(host=53, guest=5353, address="0.0.0.0"),
            PublishedPort(host=9000, guest=90, address="::1"),
        ),
        user=UserIds(uid=1000, gid=100),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("network: none", Network()),
        ("network: egress", Network(egress=Egress())),
        ("network: {egress: }", Network(egress=Egress())),
        ("cpus: 1", None),
    ],
)
def test_network(text: str, expected: Network | None) -> None:
    assert read(text).network == expected


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("cpus: 1\nmemroy: 5", 5, "unknown key 'memroy' in 'sandbox' of worker 'w'"),
        ("backends: {}", 4, "unknown key 'backends'"),
        ("backend: [a]", 4, "expected the name of a sandbox backend"),
        ("cpus: 0", 4, "'cpus' in 'sandbox' of worker 'w': expected more than nothing"),
        ("cpus: 0.01", 4, "expected 0.1 to 1024 cores"),
        ("cpus: 2000", 4, "expected 0.1 to 1024 cores"),
        ("memory: lots", 4, "expected MiB"),
        ("memory: 3", 4, "expected 16 to 1073741824 MiB"),
        ("disk: 1", 4, "expected 16 to 1073741824 MiB"),
        ("pids: 1", 4, "whole number from 2 to 4194304"),
        ("pids: true", 4, "whole number from 2 to 4194304"),
        ("network: yes", 4, "expected 'none', 'egress'"),
        ("network: [egress]", 4, "expected 'none', 'egress'"),
        ("network: {}", 4, "expected a mapping with 'egress'"),
        ("network:\n  egres: {}", 5, "unknown key 'egres' in 'network' in"),
        ("network: {egress: yes}", 4, "'network.egress' in 'sandbox' of worker 'w': expected a mapping"),
        ("network:\n  egress:\n    alow: []", 6, "unknown key 'alow' in 'network.egress'"),
        ("network: {egress: {allow: 10.0.0.0/8}}", 4, "expected a list of addresses"),
        ("network:\n  egress:\n    allow:\n    - 10.0.0.0/8\n    - 10.0.0.1/8", 8, "host bits set"),
        ("network: {egress: {allow: [127.0.0.0/8]}}", 4, "loopback, link-local and multicast stay closed"),
        ("network: {egress: {allow: [169.254.0.0/16]}}", 4, "loopback, link-local and multicast stay closed"),
        ("network: {egress: {allow: [0.0.0.0/0]}}", 4, "stay closed"),
        ("network: {egress: {allow: ['::/0']}}", 4, "stay closed"),
        ("network: {egress: {allow: [127.0.0.0/1, 112.0.0.0/4]}}", 4, "host bits set"),
        ("network: {egress: {allow: [96.0.0.0/3]}}", 4, "stay closed"),
        ("network: {egress: {nameservers: [dns.example]}}", 4, "is not an IP address"),
        ("network: {egress: {nameservers: [127.0.0.53]}}", 4, "127.0.0.53 cannot be asked"),
        ("network: {egress: {nameservers: [10.0.0.1, '::1']}}", 4, "::1 cannot be asked"),
        ("mounts: data:/data", 4, "expected a list of at most 32"),
        ("mounts: [data]", 4, "expected SOURCE:TARGET"),
        ("mounts: ['data:']", 4, "expected SOURCE:TARGET"),
        ("mounts: [':/data']", 4, "expected SOURCE:TARGET"),
        ("mounts:\n- a:/a\n- b:/b:rx", 6, "expected SOURCE:TARGET"),
        ("mounts: [[a, /b]]", 4, "expected SOURCE:TARGET"),
        ("mounts:\n- source: a\n  taget: /b", 6, "unknown key 'taget' in 'mounts[0]'"),
        ("mounts: [{source: a}]", 4, "source and target must be text"),
        ("mounts: [{source: a, target: /a, writable: sure}]", 4, "writable true or false"),
        ("mounts: ['a:b']", 4, "must be an absolute path"),
        ("mounts: ['a:/b/../c']", 4, "must be an absolute path"),
        ("mounts: ['a://b']", 4, "must be an absolute path"),
        ("mounts: ['a:/b/']", 4, "must be an absolute path"),
        ("mounts: ['a:/']", 4, "nothing can be mounted at / "),
        ("mounts: ['a:/proc/self']", 4, "nothing can be mounted at /proc/self"),
        ("mounts: ['a:/dev']", 4, "nothing can be mounted at /dev"),
        ("mounts: ['a:/x', 'b:/x']", 4, "'/x' is there twice"),
        ("mounts: ['/proc:/x']", 4, "/proc of this machine cannot be shown"),
        ("mounts: ['/run/user:/x']", 4, "/run of this machine cannot be shown"),
        ("mounts: ['${NOWHERE}:/x']", 4, "NOWHERE"),
        ("ports: 8080:80", 4, "expected a list of at most 32"),
        ("ports: [8080]", 4, "expected HOST:GUEST"),
        ("ports: ['80']", 4, "expected HOST:GUEST"),
        ("ports: ['host:80:80']", 4, "expected HOST:GUEST"),
        ("ports:\n- 80:80\n- 1.2.3:80:80", 6, "'1.2.3' is not an IP address"),
        ("ports: ['0:80']", 4, "ports are 1 to 65535"),
        ("ports: ['80:65536']", 4, "ports are 1 to 65535"),
        ("ports: ['80:80', '80:81']", 4, "is there twice"),
        ("user: nobody", 4, "expected a user id such as 1000"),
        ("user: -1", 4, "expected a user id"),
        ("user: true", 4, "expected a user id"),
        ("user: 4294967295", 4, "ids are 0 to"),
    ],
)
def test_a_mistake_is_told_with_its_line(text: str, line: int, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert told in caught.value.message
    if caught.value.code != "W133":
        assert caught.value.message.startswith(f"config.yaml:{line}: ")
    assert caught.value.hint


def test_what_would_give_power_over_iii_is_never_shown(tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / ".iii" / "logs").mkdir(parents=True)
    (project / "data").mkdir()
    (project / "link").symlink_to(".iii")
    places = Places(project=project, private=(project / ".iii", project / "config.yaml"))
    for source in (".", "..", ".iii", ".iii/logs", "link", "link/logs", str(project), "/", "data/.."):
        with pytest.raises(ConfigError, match="could take over iii"):
            read(f"mounts: ['{source}:/x']", places)
    assert read("mounts: [data:/x]", places).mounts == (Mount(source=project / "data", target="/x"),)
    with pytest.raises(ConfigError, match="no home folder"):
        read("mounts: ['~/x:/x']", places)


def test_a_project_has_backends_and_no_ports() -> None:
    def shared(text: str) -> SandboxSettings:
        config = parse_config(parse_document(text, name="config.yaml"))
        return project_sandbox(config.sandbox, {}, Places(project=Path("/p")))

    assert shared("sandbox: {backends: {x: {}}, cpus: 2}").limits.cpus == 2
    with pytest.raises(ConfigError, match="unknown key 'ports' in sandbox"):
        shared("sandbox: {ports: ['80:80']}")

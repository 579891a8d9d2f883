"""Pulls by an ordinary user: the same images, down to owners, set-user-id bits and attributes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from iii_registry_oci.manifest import host_platform

from iiitools.ocilayout import File, tar_layer, write_layout
from iiitools.registry import run_registry

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="takes root to become another user"),
]
NOBODY = 65534
BASE = {"PATH": os.environ["PATH"], "PYTHONPATH": ":".join(filter(None, sys.path))}
FETCH = """
import dataclasses, json, os, sys, trio
from pathlib import Path
from iii_core.errors import IIIError
from iii_core.records import OpenContext
from iii_registry_oci.resolver import open_resolver

async def main(home, source):
    folder = Path(home)
    context = OpenContext(state_dir=folder, runtime_dir=folder, home=folder, environ=dict(os.environ))
    async with open_resolver(None, context) as images:
        try:
            image = await images.fetch(source, refresh=False, progress=lambda _: None)
            user = dataclasses.asdict(image.user)
            print(json.dumps({"root": str(image.root.path), "user": user, "uid": os.getuid()}))
        except IIIError as error:
            print(json.dumps({"code": error.code, "said": f"{error} {error.hint}"}))

trio.run(main, *sys.argv[1:])
"""


@pytest.fixture
def ground() -> Iterator[Path]:
    """A folder that the user owns, below one that everybody may enter."""
    folder = Path(tempfile.mkdtemp())
    os.chown(folder, NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder)


def fetch(ground: Path, home: str, source: str, *interpreter: str, **environ: str) -> dict[str, Any]:
    (ground / home).mkdir()
    if interpreter[:-1]:
        os.chown(ground / home, NOBODY, NOBODY)
    done = subprocess.run(
        [*interpreter, "-c", FETCH, str(ground / home), source],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        cwd="/",
        env={**BASE, "HOME": str(ground / home), **environ},
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def unprivileged() -> tuple[str, ...]:
    """What runs Python as nobody, by a copy of this version that nobody may start; skips where there is none."""
    become = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "env")
    for python in (sys.executable, f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"):
        command = [*become, python, "-c", "import iii_registry_oci.resolver"]
        if subprocess.run(command, capture_output=True, cwd="/", env=BASE, check=False).returncode == 0:
            return (*become, python)
    pytest.skip("this version of Python is for root alone")


def test_an_ordinary_user_gets_the_same_image(ground: Path, tmp_path: Path) -> None:
    """With TLS, a password and a private authority, as it is outside of tests."""
    nobody = unprivileged()
    layers = [
        tar_layer({"etc/passwd": b"app:x:1000:1000::/srv:/bin/sh\n", "bin/su": File(b"#!", mode=0o4755)}),
        tar_layer({"srv/data": File(os.urandom(100_000), mode=0o600, uid=1000, gid=4_000_000), "etc/.wh.old": b""}),
    ]
    architecture = host_platform().architecture
    write_layout(tmp_path / "layout", tag="t", layers=layers, config={"User": "app"}, architecture=architecture)
    with run_registry(tmp_path / "private", credentials=("user", "canary-5ec2e7"), tls=True) as private:
        source = private.push(tmp_path / "layout", "t", "team/app:1")
        auth, certificate = ground / "auth.json", ground / "ca.pem"
        auth.write_text(json.dumps(private.auth_file()))
        auth.chmod(0o600)
        os.chown(auth, NOBODY, NOBODY)
        shutil.copy(private.trust()["SSL_CERT_FILE"], certificate)
        settings = {"REGISTRY_AUTH_FILE": str(auth), "SSL_CERT_FILE": str(certificate)}
        theirs = fetch(ground, "theirs", source, *nobody, **settings)
        ours = fetch(ground, "ours", source, sys.executable, **settings)
        refused = fetch(ground, "refused", source, *nobody, SSL_CERT_FILE=str(certificate))
    assert (theirs["uid"], ours["uid"]) == (NOBODY, 0)
    assert theirs["user"] == ours["user"] == {"uid": 1000, "gid": 1000, "groups": [], "home": "/srv"}
    assert digest(theirs["root"]) == digest(ours["root"])
    assert refused["code"] == "W222"
    assert "canary" not in refused["said"]
    for path in (ground / "theirs").rglob("*"):
        assert path.lstat().st_uid == NOBODY
    assert (ground / "theirs" / "images").stat().st_mode & 0o077 == 0


def digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()

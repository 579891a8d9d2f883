"""Layers of OCI images from Debian packages: no Docker, no root, and nothing unpacked on this machine.

The packages are downloaded by ``apt-get``, which verifies them, and their contents are copied from archive to archive.
What was downloaded and built is kept in ``build/cache``.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import marshal
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from importlib.util import MAGIC_NUMBER, source_hash
from pathlib import Path, PurePosixPath

from iiitools.worktree import ROOT

CACHE = ROOT / "build" / "cache"
DOWNLOAD_SECONDS = 600
NOT_COPIED = ("usr/share/doc", "usr/share/man", "usr/share/lintian", "usr/share/locale", "usr/share/icu")
MERGED = ("bin", "sbin", "lib", "lib64")  # folders that live below /usr since Debian 12
PYTHON = (3, 11)

FOLDERS = ("dev", "etc", "home", "mnt", "opt", "proc", "run", "srv", "sys", "var/lib", "workspace")
FOLDERS_OF_USR = ("usr/bin", "usr/lib", "usr/lib64", "usr/local", "usr/sbin")
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "etc/os-release": 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
}


class LayerWriter:
    """Writes one layer: every path once, owned by root, with times that don't differ from build to build."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._names: set[str] = set()

    def folder(self, name: str, mode: int = 0o755) -> None:
        """Add a folder, unless it is there, and those above it."""
        parent = str(PurePosixPath(name).parent)
        if parent != ".":
            self.folder(parent)
        self._add(name, tarfile.DIRTYPE, mode)

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link, unless something of that name is there."""
        self.folder(str(PurePosixPath(name).parent))
        self._add(name, tarfile.SYMTYPE, 0o777, target=target)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """Add a file; for a Python module also its byte code, so that no sandbox must compile it at each start."""
        self.folder(str(PurePosixPath(name).parent))
        self._add(name, tarfile.REGTYPE, mode, data=data)
        if name.endswith(".py") and "/python3" in name and sys.version_info[:2] == PYTHON:
            self._byte_code(PurePosixPath(name), data)

    def tree(self, source: Path, name: str) -> None:
        """Add a folder of this machine with all that it holds as ``name``."""
        for path in sorted(source.rglob("*")):
            target = f"{name}/{path.relative_to(source).as_posix()}"
            if path.is_symlink():
                self.link(target, str(path.readlink()))
            elif path.is_file():
                self.file(target, path.read_bytes(), 0o755 if os.access(path, os.X_OK) else 0o644)

    def package(self, deb: Path) -> None:
        """Add what a Debian package holds; its scripts are not run."""
        with (
            subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as unpacker,
            tarfile.open(fileobj=unpacker.stdout, mode="r|") as content,
        ):
            for member in content:
                self._member(content, member)
        if unpacker.returncode:
            raise RuntimeError(f"dpkg-deb can't read {deb.name}")

    def _member(self, content: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        name = merged(member.name)
        if name == "." or any(name == prefix or name.startswith(prefix + "/") for prefix in NOT_COPIED):
            return
        if member.isdir():
            self.folder(name, member.mode)
        elif member.issym():
            self.link(name, member.linkname)
        elif member.islnk():
            self._add(name, tarfile.LNKTYPE, member.mode, target=merged(member.linkname))
        elif member.isreg():
            source = content.extractfile(member)
            assert source is not None
            self.file(name, source.read(), member.mode)

    def _byte_code(self, path: PurePosixPath, source: bytes) -> None:
        """PEP 552: unchecked, hash-based .pyc files are valid whatever the time of the source is."""
        try:
            code = compile(source, f"/{path}", "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            return  # a template or a test of syntax errors
        data = MAGIC_NUMBER + (1).to_bytes(4, "little") + source_hash(source) + marshal.dumps(code)
        self.file(f"{path.parent}/__pycache__/{path.stem}.{sys.implementation.cache_tag}.pyc", data)

    def _add(self, name: str, kind: bytes, mode: int, *, data: bytes = b"", target: str = "") -> None:
        if name in self._names or name == ".":
            return
        self._names.add(name)
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode, entry.linkname, entry.size = kind, mode, target, len(data)
        self._archive.addfile(entry, io.BytesIO(data))


def merged(name: str) -> str:
    """A path of a package as a path of an image with a merged /usr: ``./lib/x`` → ``usr/lib/x``."""
    path = PurePosixPath(name.removeprefix("./"))
    return str("usr" / path if path.parts and path.parts[0] in MERGED else path)


def base(layer: LayerWriter) -> None:
    """What every root file system has: folders, users, and a shell with the usual tools (busybox)."""
    for folder in FOLDERS + FOLDERS_OF_USR:
        layer.folder(folder)
    layer.folder("root", 0o700)
    for folder in ("tmp", "var/tmp"):
        layer.folder(folder, 0o1777)
    for folder in MERGED:
        layer.link(folder, f"usr/{folder}")
    for name, text in FILES.items():
        layer.file(name, text.encode())
    applets = subprocess.run(["busybox", "--list-full"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        layer.link(merged(applet), "/usr/bin/busybox")


def build_layer(name: str, packages: Sequence[str], fill: Callable[[LayerWriter], None], *, key: str = "") -> Path:
    """An uncompressed layer of some packages and what ``fill`` adds after them, from the cache if nothing changed.

    Args:
        name: for the file's name.
        packages: Debian package names; exactly these, without what they depend on.
        fill: adds the rest.
        key: what ``fill`` depends on; a change of it makes a new layer.
    """
    recipe = "\0".join([Path(__file__).read_text(), *packages, key, sys.version])
    layer = CACHE / "layers" / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.tar"
    with locked(CACHE / "lock"):
        if layer.exists():
            return layer
        layer.parent.mkdir(exist_ok=True)
        unfinished = layer.with_suffix(".new")
        with tarfile.open(unfinished, "w", format=tarfile.PAX_FORMAT) as archive:
            writer = LayerWriter(archive)
            for package in download(packages) if packages else ():
                writer.package(package)
            fill(writer)
        unfinished.rename(layer)
    return layer


def download(packages: Iterable[str]) -> list[Path]:
    """The package files of this machine's release, whatever is installed here.

    Raises:
        RuntimeError: apt-get can't get them; the text holds what it said.
    """
    debs = CACHE / "debs"
    debs.mkdir(parents=True, exist_ok=True)
    options = apt_options()
    with tempfile.TemporaryDirectory() as nowhere:  # apt-get lists no file that is in its folder already
        wanted = apt_get([*options, "--print-uris", "download", *packages], Path(nowhere))
        if wanted.returncode:  # no package lists, as in a container: get some of our own, which needs no root
            options += own_lists()
            apt_get([*options, "update"], Path(nowhere))
            wanted = apt_get([*options, "--print-uris", "download", *packages], Path(nowhere))
    names = re.findall(r"^'\S+' (\S+\.deb) ", wanted.stdout, re.MULTILINE)
    if wanted.returncode or not names:
        raise RuntimeError(f"apt-get can't find the packages:\n{wanted.stderr}")
    missing = [name.partition("_")[0] for name in names if not (debs / name).exists()]
    if missing:
        done = apt_get([*options, "download", *missing], debs)
        if done.returncode:
            raise RuntimeError(f"apt-get can't download the packages:\n{done.stderr}")
    return [debs / name for name in names]


def own_lists() -> list[str]:
    """Options that make apt-get keep its lists of packages in the cache, which exists afterwards."""
    apt = CACHE / "apt"
    for folder in ("lists/partial", "archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    return ["-o", f"Dir::State::Lists={apt / 'lists'}", "-o", f"Dir::Cache={apt}"]


def apt_options() -> list[str]:
    """Ignore what is installed, so that the release's own versions are chosen, and write no caches of the system."""
    nothing = CACHE / "apt-status"
    nothing.touch()
    settings = [
        f"Dir::State::Status={nothing}",
        "Dir::Cache::pkgcache=",
        "Dir::Cache::srcpkgcache=",
        "APT::Sandbox::User=",
    ]
    return [word for setting in settings for word in ("-o", setting)]


def apt_get(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run apt-get in a folder, without a terminal."""
    return subprocess.run(
        ["apt-get", "-q", *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DOWNLOAD_SECONDS,
        env={**os.environ, "LC_ALL": "C"},
    )


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Hold a lock file, so that two programs don't build the same thing at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

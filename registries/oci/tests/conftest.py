"""Registries, stores and merges for the tests of the oci plugin; skopeo, docker-registry and sqfstar are real."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import trio
from iii_registry_oci.layers.blob import Layer
from iii_registry_oci.layers.build import WANTED
from iii_registry_oci.layers.limits import Limits
from iii_registry_oci.layers.merge import Merged, merge
from iii_registry_oci.resolver import OciResolver, open_resolver

from iii_core.errors import ImageError
from iii_core.images.port import Progress
from iii_core.records import OpenContext
from iiitools.certificates import Certificate
from iiitools.lyingregistry import Goods, Server
from iiitools.registry import Registry, run_registry


@dataclass
class MergedImage:
    """A merged image as Python's own tar reader sees it."""

    merged: Merged
    root: tuple[int, int, int, int]
    entries: dict[str, tarfile.TarInfo]
    data: dict[str, bytes]

    @property
    def names(self) -> set[str]:
        return set(self.entries)


Merge: TypeAlias = Callable[..., MergedImage]
OpenStore: TypeAlias = Callable[..., AbstractAsyncContextManager[OciResolver]]


def store_layer(folder: Path, data: bytes, diff_id: str | None = None) -> Layer:
    """A layer as it would lie in the store; ``data`` as it is, packed or not."""
    digest = hashlib.sha256(data).hexdigest()
    path = folder / digest
    path.write_bytes(data)
    if diff_id is None:
        plain = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        diff_id = f"sha256:{hashlib.sha256(plain).hexdigest()}"
    return Layer(path=path, digest=f"sha256:{digest}", size=len(data), diff_id=diff_id)


@pytest.fixture
def merge_layers(tmp_path: Path) -> Merge:
    """Merge tars (base first) without sqfstar; nothing but the layers' files may be left on the disk."""
    blobs = tmp_path / "blobs"
    scratch = tmp_path / "scratch"
    blobs.mkdir()
    scratch.mkdir()

    def run(*tars: bytes | Layer, limits: Limits | None = None) -> MergedImage:
        layers = [tar if isinstance(tar, Layer) else store_layer(blobs, gzip.compress(tar, 1)) for tar in tars]
        output = io.BytesIO()
        roots: list[tuple[int, int, int, int]] = []

        def begin(root: object, _newest: int) -> Callable[[bytes], object]:
            roots.append((root.mode, root.uid, root.gid, root.mtime))  # type: ignore[attr-defined]
            return output.write

        try:
            merged = merge(
                layers, limits=limits or Limits(), scratch=scratch, moved=lambda _: None, begin=begin, wanted=WANTED
            )
        finally:
            assert list(scratch.iterdir()) == []
        output.seek(0)
        entries: dict[str, tarfile.TarInfo] = {}
        data: dict[str, bytes] = {}
        with tarfile.open(fileobj=output, encoding="utf-8", errors="surrogateescape") as archive:
            for info in archive:
                assert info.name not in entries, "a name was written twice"
                entries[info.name] = info
                if info.isreg():
                    opened = archive.extractfile(info)
                    assert opened is not None
                    data[info.name] = opened.read()
        return MergedImage(merged, roots[0], entries, data)

    return run


@pytest.fixture
def blobs(tmp_path: Path, merge_layers: Merge) -> Path:
    """Where hand-made layers may lie."""
    return tmp_path / "blobs"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """``$III_HOME``."""
    return tmp_path / "iii-home"


@pytest.fixture
def open_store(tmp_path: Path, home: Path) -> OpenStore:
    """Open the store of ``home``; ``environ`` adds to an environment without any user's settings."""

    @asynccontextmanager
    async def run(environ: Mapping[str, str] | None = None, home: Path = home) -> AsyncIterator[OciResolver]:
        user = tmp_path / "user"
        user.mkdir(exist_ok=True)
        context = OpenContext(
            state_dir=tmp_path / "state",
            runtime_dir=tmp_path / "run",
            home=home,
            environ={"PATH": os.environ["PATH"], "HOME": str(user), **(environ or {})},
        )
        async with open_resolver(None, context) as resolver:
            yield resolver

    return run


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry without credentials, shared: push under names of your own."""
    with run_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@dataclass
class Steps:
    """Collects progress."""

    steps: list[Progress] = field(default_factory=list[Progress])

    def __call__(self, step: Progress) -> None:
        self.steps.append(step)

    @property
    def stages(self) -> Sequence[str]:
        return [step.stage for step in self.steps]


@pytest.fixture
def steps() -> Steps:
    """A progress sink that remembers."""
    return Steps()


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file below a folder but locks: inode, modification time and content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "locks" not in path.parts:
            status = path.stat()
            found[str(path.relative_to(folder))] = (status.st_ino, status.st_mtime_ns, path.read_bytes())
    return found


@pytest.fixture
def take_snapshot() -> Callable[[Path], dict[str, tuple[int, int, bytes]]]:
    """See `snapshot`."""
    return snapshot


@pytest.fixture
def lay_layer(blobs: Path) -> Callable[..., Layer]:
    """See `store_layer`."""
    return lambda data, diff_id=None: store_layer(blobs, data, diff_id)


@pytest.fixture
def servers() -> Iterator[Callable[..., Server]]:
    """Start registries that say what they are told to."""
    opened: list[Server] = []

    def start(certificate: Certificate | None = None) -> Server:
        opened.append(Server(certificate))
        return opened[-1]

    yield start
    for server in opened:
        server.close()


@pytest.fixture
def goods(servers: Callable[..., Server]) -> Goods:
    """An honest image at a registry that may lie."""
    return Goods(servers())


@pytest.fixture
def refused(open_store: OpenStore, home: Path) -> Callable[..., Awaitable[ImageError]]:
    """Fetch what must be refused with one of ``kinds``; the store stays empty, and the error tells nothing secret."""

    async def fetch(source: str, *kinds: type[ImageError], environ: Mapping[str, str] | None = None) -> ImageError:
        async with open_store(environ) as images:
            with trio.fail_after(40), pytest.raises(kinds) as caught:
                await images.fetch(source, refresh=False, progress=lambda _: None)
        left = [path for path in (home / "images").rglob("*") if path.is_file() and path.parent.name != "locks"]
        assert left == []
        assert list((home / "images/staging").iterdir()) == []
        said = f"{caught.value} {caught.value.hint} {caught.value.details}"
        assert said.isprintable()
        assert "canary-" not in said
        return caught.value

    return fetch


def plant(folder: Path) -> None:
    """What must not change: a file, a link and folders, also by the names that attacks use."""
    for place in (folder, folder / "canary", folder / "home", folder / "etc"):
        place.mkdir(exist_ok=True)
        (place / "file").write_bytes(os.urandom(1000))
        (place / "link").symlink_to("file")
        (place / "file").chmod(0o640)


def hashed(folder: Path, but: Path) -> dict[str, tuple[Any, ...]]:
    """Everything below a folder except for one: kind, mode, owner, times, links and content."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        if path == but or but in path.parents:
            continue
        status = path.lstat()
        content = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path)] = (status.st_mode, status.st_uid, status.st_nlink, status.st_mtime_ns, content)
    return found


class Ground:
    """Canaries in every folder above a store, at the places that attacks aim at."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "inner" / "iii-home"
        self.home.mkdir(parents=True)
        for place in (folder, self.home.parent):
            plant(place)
        self._before = hashed(folder, self.home)

    @property
    def canary(self) -> Path:
        """A folder that attacks aim at."""
        return self.folder / "canary"

    def check(self) -> None:
        """All is as it was, and nothing is left of a pull."""
        assert hashed(self.folder, self.home) == self._before
        assert list((self.home / "images/staging").iterdir()) == []

    def kept(self) -> list[Path]:
        """What the store holds."""
        files = (path for path in (self.home / "images").rglob("*") if path.is_file())
        return [path for path in files if path.parent.name != "locks"]


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    """See `Ground`."""
    return Ground(tmp_path / "ground")

"""Pulling from a real registry with the real skopeo."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from iii_registry_oci.manifest import host_platform

from iii_core.errors import (
    ImageNotFound,
    NoMatchingPlatform,
    RegistryAuthError,
    RegistryUnreachable,
)
from iiitools.ocilayout import PlatformImage, tar_layer, write_index, write_layout
from iiitools.registry import Registry, run_registry

pytestmark = pytest.mark.integration
MACHINE = host_platform().architecture
SECRET = "canary-0b5ecre7"


def push(registry: Registry, tmp_path: Path, name: str, content: bytes = b"1", **config: Any) -> tuple[str, str]:
    """Push a two-layer image; gives its reference and its manifest's digest."""
    layout = tmp_path / "layout"
    layers = [
        tar_layer({"bin/sh": b"#!", "shared": b"base"}),
        tar_layer({"iii/worker.yaml": b"name: w\n", "x": content}),
    ]
    digest = write_layout(layout, tag="t", layers=layers, config=config, architecture=MACHINE)
    return registry.push(layout, "t", name), digest


async def test_by_tag(registry: Registry, tmp_path: Path, open_store: Any, steps: Any) -> None:
    config = {
        "Env": ["FOO=bar", "PATH=/bin"],
        "Entrypoint": ["/bin/sh"],
        "Cmd": ["-c"],
        "WorkingDir": "/app",
        "User": "1000",
    }
    source, digest = push(registry, tmp_path, "by-tag:1.0", **config)
    async with open_store() as images:
        assert await images.stored(source) is None
        image = await images.fetch(source, refresh=False, progress=steps)
        assert await images.stored(source) == image
    assert (image.reference, image.digest, image.name) == (source, digest, "by-tag")
    assert image.config.env == (("FOO", "bar"), ("PATH", "/bin"))
    assert (image.config.entrypoint, image.config.cmd) == (("/bin/sh",), ("-c",))
    assert (image.config.working_dir, image.config.user) == ("/app", "1000")
    assert image.hints is not None
    assert image.hints.name == "w"
    assert image.size == image.root.path.stat().st_size
    listed = run("unsquashfs", "-l", str(image.root.path)).decode()
    assert "squashfs-root/bin/sh" in listed
    assert list(dict.fromkeys(steps.stages))[:2] == ["resolving", "downloading"]
    assert steps.stages[-1] == "stored"


async def test_by_digest(registry: Registry, tmp_path: Path, open_store: Any, steps: Any) -> None:
    source, digest = push(registry, tmp_path, "by-digest:1.0")
    repository = source.rpartition(":")[0]
    async with open_store() as images:
        for pinned in (f"{repository}@{digest}", f"{source}@{digest}"):
            assert (await images.fetch(pinned, refresh=False, progress=steps)).digest == digest
        with pytest.raises(ImageNotFound):
            await images.fetch(f"{repository}@sha256:{'0' * 64}", refresh=False, progress=steps)


async def test_what_is_not_there(registry: Registry, tmp_path: Path, open_store: Any, steps: Any) -> None:
    source, _ = push(registry, tmp_path, "there:1.0")
    async with open_store() as images:
        for missing in (source + "-no", f"{registry.address}/never/pushed:1"):
            with pytest.raises(ImageNotFound, match="no such image"):
                await images.fetch(missing, refresh=False, progress=steps)
        for missing in (f"oci:{tmp_path}/none:t", f"oci:{tmp_path}/layout:none", f"docker-archive:{tmp_path}/none.tar"):
            with pytest.raises(ImageNotFound) as caught:
                await images.fetch(missing, refresh=False, progress=steps)
            assert "path" in (caught.value.hint or "")


async def test_a_registry_that_is_not_there(open_store: Any, steps: Any) -> None:
    async with open_store() as images:
        with trio.fail_after(40), pytest.raises(RegistryUnreachable, match="does not answer"):
            await images.fetch("127.0.0.1:1/x:1", refresh=False, progress=steps)


async def test_credentials(tmp_path: Path, open_store: Any, steps: Any) -> None:
    with run_registry(tmp_path / "private", credentials=("user", SECRET)) as private:
        source, _ = push(private, tmp_path, "secret/worker:1.0")
        right, wrong = tmp_path / "right.json", tmp_path / "wrong.json"
        right.write_text(json.dumps(private.auth_file()))
        wrong.write_text(json.dumps({"auths": {private.address: {"auth": "dXNlcjp3cm9uZw=="}}}))
        broken = tmp_path / "broken.json"
        broken.write_text("{")
        for auth in (None, wrong, broken):
            async with open_store({"REGISTRY_AUTH_FILE": str(auth)} if auth else None) as images:
                with pytest.raises(RegistryAuthError) as caught:
                    await images.fetch(source, refresh=False, progress=steps)
                said = f"{caught.value} {caught.value.hint} {caught.value.details}"
                assert SECRET not in said
                assert "dXNlcjp3cm9uZw" not in said
        async with open_store({"REGISTRY_AUTH_FILE": str(right)}) as images:
            assert (await images.fetch(source, refresh=False, progress=steps)).name == "worker"


async def test_the_docker_config_of_the_user_is_read(tmp_path: Path, open_store: Any, steps: Any) -> None:
    with run_registry(tmp_path / "private", credentials=("user", SECRET)) as private:
        source, _ = push(private, tmp_path, "worker:1.0")
        docker = tmp_path / "user" / ".docker"
        docker.mkdir(parents=True)
        (docker / "config.json").write_text(json.dumps(private.auth_file()))
        async with open_store() as images:
            await images.fetch(source, refresh=False, progress=steps)


def test_no_secret_is_in_an_argument() -> None:
    source = Path(sys.modules["iii_registry_oci.skopeo"].__file__ or "").read_text()
    assert not any(option in source for option in ("creds", "--password", "--registry-token", "--authfile"))


async def test_the_platform_of_an_index(registry: Registry, tmp_path: Path, open_store: Any, steps: Any) -> None:
    images_of = [
        PlatformImage(architecture=name, layers=[tar_layer({"arch": name.encode()})])
        for name in ("s390x", MACHINE, "riscv64")
    ]
    write_index(tmp_path / "index", tag="t", images=images_of)
    source = registry.push(tmp_path / "index", "t", "index:1.0")
    async with open_store() as images:
        for where in (source, f"oci:{tmp_path}/index:t"):
            image = await images.fetch(where, refresh=False, progress=steps)
            found = run("unsquashfs", "-cat", str(image.root.path), "arch")
            assert found == MACHINE.encode()

        assert image.pin is None  # of a folder
        pin = (await images.fetch(source, refresh=False, progress=steps)).pin
        assert pin is not None
        assert pin != f"{source}@{image.digest}"  # what holds on other machines too is the index
        assert (await images.fetch(pin, refresh=False, progress=steps)).digest == image.digest


async def test_no_platform_fits(registry: Registry, tmp_path: Path, open_store: Any, steps: Any) -> None:
    others = [PlatformImage(architecture=name, layers=[tar_layer({"a": b""})]) for name in ("s390x", "riscv64")]
    write_index(tmp_path / "index", tag="t", images=others)
    write_layout(tmp_path / "index", tag="one", layers=[tar_layer({"a": b""})], config={}, architecture="mips64le")
    async with open_store() as images:
        with pytest.raises(NoMatchingPlatform) as caught:
            await images.fetch(registry.push(tmp_path / "index", "t", "alien:1"), refresh=False, progress=steps)
        assert caught.value.details["available"] == ["linux/s390x", "linux/riscv64"]
        with pytest.raises(NoMatchingPlatform, match="mips64le"):
            await images.fetch(registry.push(tmp_path / "index", "one", "alien:2"), refresh=False, progress=steps)


async def test_tls(tmp_path: Path, open_store: Any, steps: Any) -> None:
    with run_registry(tmp_path / "tls", tls=True) as secure:
        source, _ = push(secure, tmp_path, "worker:1.0")
        async with open_store(secure.trust()) as images:
            await images.fetch(source, refresh=False, progress=steps)


def test_plain_http_is_for_loopback_and_what_the_user_lists() -> None:
    from iii_registry_oci.layers.limits import Limits
    from iii_registry_oci.reference import parse
    from iii_registry_oci.skopeo import Skopeo

    def insecure(source: str, listed: str = "") -> bool:
        return Skopeo({"III_INSECURE_REGISTRIES": listed}, Limits()).is_insecure(parse(source, cwd=Path("/")))

    assert all(insecure(f"{host}/x") for host in ("localhost", "localhost:5", "127.0.0.1:5", "[::1]:5", "[::1]"))
    strangers = (
        "10.0.0.1:5",
        "127.0.0.2:5",
        "localhost.evil.io",
        "127.0.0.1.evil.io",
        "[::ffff:127.0.0.1]:5",
        "docker.io",
    )
    assert not any(insecure(f"{host}/x") for host in strangers)
    assert insecure("10.0.0.1:5/x", "a.io, 10.0.0.1")
    assert insecure("10.0.0.1:5/x", "10.0.0.1:5")
    assert not insecure("10.0.0.1:5/x", "10.0.0.1:6")


async def test_http_is_refused_elsewhere(tmp_path: Path) -> None:
    """A registry under a name that is not loopback to us: TLS or nothing, and no request in plain text."""
    from iii_registry_oci.layers.limits import Limits
    from iii_registry_oci.reference import parse
    from iii_registry_oci.skopeo import Skopeo

    skopeo = Skopeo({"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}, Limits())
    with run_registry(tmp_path / "registry") as registry:
        reference = parse(f"127.1:{registry.address.rpartition(':')[2]}/x:1", cwd=tmp_path)
        with trio.fail_after(40), pytest.raises(RegistryUnreachable) as caught:
            await skopeo.manifest(reference, None, tmp_path)
        assert registry.requests() == []
    assert caught.value.hint


async def test_a_stored_image_needs_no_registry(
    tmp_path: Path, open_store: Any, steps: Any, home: Path, take_snapshot: Callable[[Path], Any]
) -> None:
    with run_registry(tmp_path / "reg") as local:
        source, _ = push(local, tmp_path, "warm:1.0")
        async with open_store() as images:
            first = await images.fetch(source, refresh=False, progress=steps)
    before = take_snapshot(home)
    async with open_store() as images:
        assert await images.fetch(source, refresh=False, progress=steps) == first
        with pytest.raises(RegistryUnreachable):
            await images.fetch(source, refresh=True, progress=steps)
        assert await images.stored(source) == first
    assert take_snapshot(home) == before


async def test_refresh_of_what_did_not_move_copies_nothing(
    registry: Registry, tmp_path: Path, open_store: Any, steps: Any
) -> None:
    source, _ = push(registry, tmp_path, "still:1.0")
    async with open_store() as images:
        first = await images.fetch(source, refresh=False, progress=steps)
        before = len([line for line in registry.requests() if "/blobs/" in line])
        steps.steps.clear()
        assert await images.fetch(source, refresh=True, progress=steps) == first
    assert len([line for line in registry.requests() if "/blobs/" in line]) == before
    assert steps.stages == ["resolving", "stored"]


async def test_a_warm_add_copies_no_layer(
    registry: Registry, tmp_path: Path, open_store: Any, home: Path, steps: Any, take_snapshot: Callable[[Path], Any]
) -> None:
    """The same image again: by its name without any request, by another one with the manifest's alone."""
    source, _ = push(registry, tmp_path, "warm-add:1.0")
    other, _ = push(registry, tmp_path, "warm-add:stable")
    async with open_store() as images:
        first = await images.fetch(source, refresh=False, progress=steps)
    stored = [take_snapshot(home / "images" / name) for name in ("blobs", "roots")]
    asked = len(registry.requests())
    async with open_store() as images:
        assert await images.fetch(source, refresh=False, progress=steps) == first
        assert len(registry.requests()) == asked
        assert (await images.fetch(other, refresh=False, progress=steps)).root == first.root
    new = registry.requests()[asked:]
    assert any("/v2/warm-add/manifests/stable" in line for line in new)
    assert not any("/blobs/" in line for line in new)
    assert [take_snapshot(home / "images" / name) for name in ("blobs", "roots")] == stored


async def test_a_moved_tag_is_seen_by_refresh_alone(
    registry: Registry, tmp_path: Path, open_store: Any, steps: Any
) -> None:
    source, old = push(registry, tmp_path, "moving:1.0", b"old")
    async with open_store() as images:
        pin = (await images.fetch(source, refresh=False, progress=steps)).pin
        assert pin == f"{source}@{old}"
        _, new = push(registry, tmp_path, "moving:1.0", b"new")
        assert (await images.fetch(source, refresh=False, progress=steps)).digest == old
        moved = await images.fetch(source, refresh=True, progress=steps)
        assert (moved.digest, moved.pin) == (new, f"{source}@{new}")
        assert (await images.fetch(source, refresh=False, progress=steps)) == moved
        asked = len(registry.requests())
        kept = await images.fetch(pin, refresh=True, progress=steps)
        assert (kept.digest, kept.pin) == (old, pin)
        assert len(registry.requests()) == asked
        await images.remove(source)
        assert await images.stored(pin) is None
        assert (await images.fetch(pin, refresh=False, progress=steps)).digest == old


async def test_shared_layers_are_fetched_once(registry: Registry, tmp_path: Path, open_store: Any, steps: Any) -> None:
    one, _ = push(registry, tmp_path, "shares:1", b"one")
    two, _ = push(registry, tmp_path, "shares:2", b"two")
    base = write_base(tmp_path)
    async with open_store() as images:
        await images.fetch(one, refresh=False, progress=steps)
        await images.fetch(two, refresh=False, progress=steps)
    fetched = [line for line in registry.requests() if f"GET /v2/shares/blobs/{base}" in line]
    assert len(fetched) == 1


def run(*command: str) -> bytes:
    """Run a program that must succeed; gives its stdout."""
    return subprocess.run(command, check=True, capture_output=True, timeout=30).stdout


def write_base(tmp_path: Path) -> str:
    """The digest of the layer that all images of `push` share."""
    from iiitools.ocilayout import write_layer

    return str(write_layer(tmp_path / "base", tar_layer({"bin/sh": b"#!", "shared": b"base"}))[0]["digest"])


async def test_a_damaged_blob_of_the_store_is_fetched_again(
    registry: Registry, tmp_path: Path, open_store: Any, home: Path, steps: Any
) -> None:
    one, _ = push(registry, tmp_path, "mends:1", b"one")
    two, digest = push(registry, tmp_path, "mends:2", b"two")
    async with open_store() as images:
        await images.fetch(one, refresh=False, progress=steps)
        blob = home / "images/blobs/sha256" / write_base(tmp_path).removeprefix("sha256:")
        good = blob.read_bytes()
        blob.write_bytes(b"?" + good[1:])
        assert (await images.fetch(two, refresh=False, progress=steps)).digest == digest
    assert blob.read_bytes() == good


async def test_remove_frees_what_no_other_reference_needs(
    registry: Registry, tmp_path: Path, open_store: Any, home: Path, steps: Any
) -> None:
    one, _ = push(registry, tmp_path, "gone:1", b"one")
    two, _ = push(registry, tmp_path, "gone:2", b"two")
    async with open_store() as images:
        first = await images.fetch(one, refresh=False, progress=steps)
        second = await images.fetch(two, refresh=False, progress=steps)
        assert await images.remove(one) >= first.size
        assert await images.stored(one) is None
        assert not first.root.path.exists()
        assert await images.stored(two) == second
        assert await images.remove(one) == 0
        assert await images.remove(two) >= second.size
    assert [path for path in (home / "images").rglob("*") if path.is_file() and path.parent.name != "locks"] == []


async def test_archives(tmp_path: Path, open_store: Any, steps: Any) -> None:
    layers = [tar_layer({"a": b"1"}), tar_layer({"b": b"2"})]
    write_layout(tmp_path / "lay", tag="t", layers=layers, config={"Env": ["A=1"]}, architecture=MACHINE)
    write_index(tmp_path / "lay", tag="i", images=[PlatformImage(architecture=MACHINE, layers=layers)])
    archives = {
        f"oci-archive:{tmp_path}/o.tar:t": ("t", f"oci-archive:{tmp_path}/o.tar:t"),
        f"docker-archive:{tmp_path}/d.tar:w:1": ("t", f"docker-archive:{tmp_path}/d.tar:w:1"),
    }
    for tag, target in archives.values():
        run("skopeo", "--insecure-policy", "copy", "--quiet", f"oci:{tmp_path}/lay:{tag}", target)
    run("tar", "-C", str(tmp_path / "lay"), "-cf", str(tmp_path / "i.tar"), ".")
    async with open_store() as images:
        for source in (*archives, f"oci-archive:{tmp_path}/i.tar:i"):
            image = await images.fetch(source, refresh=False, progress=steps)
            listed = run("unsquashfs", "-l", str(image.root.path)).decode()
            assert {"squashfs-root/a", "squashfs-root/b"} <= set(listed.split())

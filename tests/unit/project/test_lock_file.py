"""``iii.lock``."""

from __future__ import annotations

from pathlib import Path

import pytest

from iii_core.errors import ConfigError, LockfileMismatch
from iii_core.project.locate import locate_project
from iii_core.project.lock import (
    Lock,
    LockEntry,
    hash_dependencies,
    load_lock,
    locked_source,
    parse_lock,
    pin_of,
    render_lock,
    save_lock,
    with_image,
    without_worker,
)

SHA = "a" * 64
TEXT = f"""\
version: 1
manifest_hash: {hash_dependencies({"helper": "^1.0.0"})}
declared_dependencies:
  helper: ^1.0.0
workers:
  helper:
    version: 1.2.0
    type: binary
    dependencies: {{}}
    source:
      kind: binary
      artifacts:
        aarch64-apple-darwin:
          sha256: {SHA}
          url: https://cdn.example/helper-mac.tar.gz
        x86_64-unknown-linux-gnu:
          sha256: {SHA}
          url: https://cdn.example/helper-lin.tar.gz
  iii-state:
    version: '0.16'
    type: engine
    dependencies: {{}}
  pack:
    version: 1.0.0
    type: bundle
    dependencies: {{}}
    source:
      kind: bundle
      archive_url: https://cdn.example/pack.tar.gz
      sha256: {SHA}
  thumbs:
    version: 1.4.0
    type: image
    dependencies:
      helper: ^1.0.0
    source:
      kind: image
      image: ghcr.io/acme/thumbs@sha256:{SHA}
"""


def test_round_trip() -> None:
    lock = parse_lock(TEXT)
    assert render_lock(lock) == TEXT
    assert lock.workers["thumbs"].dependencies == {"helper": "^1.0.0"}
    assert lock.workers["iii-state"] == LockEntry(version="0.16", kind="engine")
    assert lock.declared == {"helper": "^1.0.0"}


def test_names_are_sorted() -> None:
    workers = {name: LockEntry(version="1", kind="engine") for name in ("b", "a")}
    assert render_lock(Lock(workers=workers)).index("  a:") < render_lock(Lock(workers=workers)).index("  b:")


def test_the_older_form_of_a_binary_is_converted() -> None:
    old = (
        "version: 1\nworkers:\n  w:\n    version: 1.0.0\n    type: binary\n    source:\n"
        f"      {{kind: binary, target: x86_64, url: 'https://h/w', sha256: {SHA}}}\n"
    )
    assert parse_lock(old).workers["w"].source == {"artifacts": {"x86_64": {"url": "https://h/w", "sha256": SHA}}}
    assert "target" not in render_lock(parse_lock(old))


def entry(text: str) -> str:
    return f"version: 1\nworkers:\n  w: {{version: 1.0.0, {text}}}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 2\nworkers: {}\n", "unsupported version 2 (expected 1)"),
        ("workers: {}\n", "unsupported version None"),
        ("version: 1\n", "'workers' must be a mapping"),
        ("[]", "the file must be a mapping"),
        (entry("type: image, source: {kind: image, image: 'a/b:1'}"), "not pinned by digest"),
        (entry("type: engine, source: {kind: engine}"), "an engine worker has no source"),
        (entry("type: image, source: {kind: bundle}"), "the source's kind is not 'image'"),
        (entry("type: image"), "'source' must be a mapping"),
        (entry("type: magic"), "unknown type 'magic'"),
        (entry("type: binary, source: {kind: binary, artifacts: {}}"), "no artifacts"),
        (
            entry("type: binary, source: {kind: binary, artifacts: {t: {url: u, sha256: short}}}"),
            "64 hexadecimal digits",
        ),
        (entry("type: bundle, source: {kind: bundle, archive_url: u, sha256: XYZ}"), "64 hexadecimal digits"),
        (entry("type: bundle, source: {kind: bundle, sha256: XYZ}"), "'archive_url' is missing"),
        (entry("type: engine, dependencies: {x: 'not a range'}"), "is not a version range"),
        (entry("type: engine, dependencies: {'../x': '1'}"), "is not a worker name"),
        ("version: 1\nworkers:\n  ../w: {version: 1, type: engine}\n", "is not a worker name"),
        ("version: 1\nworkers: {w: {type: engine}}\n", "'version' is missing"),
        ("version: 1\nmanifest_hash: x\nworkers: {}\n", "come together or not at all"),
        (TEXT.replace("  helper: ^1.0.0\nworkers", "  helper: ^1.0.1\nworkers"), "does not match"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_lock(text)
    assert message in caught.value.message


@pytest.mark.parametrize("wanted", ["^1.0.0", "~1.2", ">=1.0.0, <2.0.0", "1", "*", "1.x", "=1.2.3-rc.1", "v1.0.0"])
def test_ranges(wanted: str) -> None:
    assert parse_lock(entry(f"type: engine, dependencies: {{x: '{wanted}'}}")).workers["w"].dependencies == {
        "x": wanted
    }


def test_what_could_not_be_read_back_is_not_written() -> None:
    with pytest.raises(ConfigError):
        render_lock(Lock(workers={"w": LockEntry(version="1", kind="image", source={"image": "a/b:latest"})}))


def test_files(tmp_path: Path) -> None:
    project = locate_project(cwd=tmp_path, environ={})
    assert load_lock(project) == Lock()
    save_lock(project, parse_lock(TEXT))
    assert project.lock_path.read_text() == TEXT
    assert load_lock(project) == parse_lock(TEXT)


REFERENCE = "reg.example/o/w:1"
PIN = f"{REFERENCE}@sha256:{SHA}"


class TestPins:
    def test_an_image_is_pinned_run_and_forgotten(self) -> None:
        lock = with_image(parse_lock(TEXT), "w", REFERENCE, PIN, None)
        assert parse_lock(render_lock(lock)) == lock
        assert lock.workers["w"].version == "1"
        assert pin_of(lock, "w") == PIN
        assert locked_source(lock, "w", REFERENCE) == PIN
        assert without_worker(lock, "w") == parse_lock(TEXT)

    @pytest.mark.parametrize(
        ("source", "pin", "version", "found"),
        [
            (REFERENCE, PIN, "1.4.0", "1.4.0"),
            ("reg.example:80/o/w", f"reg.example:80/o/w:latest@sha256:{SHA}", None, f"sha256:{SHA}"),
            (f"reg.example/o/w@sha256:{SHA}", f"reg.example/o/w@sha256:{SHA}", None, f"sha256:{SHA}"),
        ],
    )
    def test_versions(self, source: str, pin: str, version: str | None, found: str) -> None:
        lock = with_image(Lock(), "w", source, pin, version)
        assert lock.workers["w"].version == found
        assert locked_source(lock, "w", source).endswith(f"@sha256:{SHA}")

    def test_dependencies_stay(self) -> None:
        lock = with_image(
            parse_lock(TEXT), "thumbs", "ghcr.io/acme/thumbs:2", f"ghcr.io/acme/thumbs:2@sha256:{SHA}", "2"
        )
        assert lock.workers["thumbs"].dependencies == {"helper": "^1.0.0"}

    def test_what_cannot_be_pinned_is_not(self) -> None:
        lock = with_image(with_image(Lock(), "w", REFERENCE, PIN, None), "w", "oci-archive:/a", None, None)
        assert lock == Lock()
        assert locked_source(lock, "w", "oci-archive:/a") == "oci-archive:/a"

    @pytest.mark.parametrize("source", ["reg.example/o/w:2", f"reg.example/o/w:1@sha256:{'b' * 64}"])
    def test_what_disagrees_is_refused(self, source: str) -> None:
        with pytest.raises(LockfileMismatch) as caught:
            locked_source(with_image(Lock(), "w", REFERENCE, PIN, None), "w", source)
        assert source in caught.value.message
        assert PIN in caught.value.message
        with pytest.raises(LockfileMismatch, match="of type engine"):
            locked_source(parse_lock(TEXT), "iii-state", source)

"""The grammar of references, and which sources are images at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from iii_registry_oci.reference import LocalReference, RegistryReference, parse
from iii_registry_oci.sources import accepts

from iii_core.errors import IIIError, UsageError

DIGEST = "sha256:" + "ab" * 32
CWD = Path("/somewhere")


@pytest.mark.parametrize(
    ("source", "canonical", "name"),
    [
        ("foo:1", "docker.io/library/foo:1", "foo"),
        ("me/foo", "docker.io/me/foo:latest", "foo"),
        ("docker.io/foo", "docker.io/library/foo:latest", "foo"),
        ("index.docker.io/me/foo:1", "docker.io/me/foo:1", "foo"),
        ("localhost/foo", "localhost/foo:latest", "foo"),
        ("localhost:5050/x:latest", "localhost:5050/x:latest", "x"),
        ("127.0.0.1:5/a/b/my-worker:1.0", "127.0.0.1:5/a/b/my-worker:1.0", "my-worker"),
        ("[::1]:5000/x", "[::1]:5000/x:latest", "x"),
        ("ghcr.io/o/w:latest", "ghcr.io/o/w:latest", "w"),
        ("GHCR.io/o/w", "ghcr.io/o/w:latest", "w"),
        (f"ghcr.io/o/w@{DIGEST}", f"ghcr.io/o/w@{DIGEST}", "w"),
        (f"ghcr.io/o/w:1@{DIGEST}", f"ghcr.io/o/w:1@{DIGEST}", "w"),
        ("a.b/c__d/e--f.g_h", "a.b/c__d/e--f.g_h:latest", "e--f.g_h"),
    ],
)
def test_registry_references_are_completed(source: str, canonical: str, name: str) -> None:
    reference = parse(source, cwd=CWD)
    assert isinstance(reference, RegistryReference)
    assert (reference.canonical, reference.name) == (canonical, name)
    assert parse(reference.canonical, cwd=CWD) == reference


def test_a_digest_decides_over_a_tag() -> None:
    assert parse(f"a.io/w:1@{DIGEST}", cwd=CWD).transport == f"docker://a.io/w@{DIGEST}"
    assert parse("a.io/w:1", cwd=CWD).transport == "docker://a.io/w:1"


@pytest.mark.parametrize(
    ("source", "canonical", "name"),
    [
        ("oci:lay", "oci:/somewhere/lay", "lay"),
        ("oci:lay:1.0", "oci:/somewhere/lay:1.0", "lay"),
        ("oci:/abs/My-Lay:t", "oci:/abs/My-Lay:t", "my-lay"),
        ("oci-archive:./w.tar:t", "oci-archive:/somewhere/w.tar:t", "w"),
        ("docker-archive:w.tar", "docker-archive:/somewhere/w.tar", "w"),
        ("docker-archive:w.tar:me/worker:1", "docker-archive:/somewhere/w.tar:me/worker:1", "worker"),
    ],
)
def test_local_references_have_an_absolute_path(source: str, canonical: str, name: str) -> None:
    reference = parse(source, cwd=CWD)
    assert isinstance(reference, LocalReference)
    assert (reference.canonical, reference.name) == (canonical, name)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("ghcr.io/Owner/w", "lower-case"),
        ("ghcr.io//w", "''"),
        ("ghcr.io/w:", "tag"),
        ("ghcr.io/w:-x", "tag"),
        ("ghcr.io/w:" + "a" * 129, "tag"),
        ("ghcr.io/w@sha256:abc", "digest"),
        ("ghcr.io/w@sha256:" + "AB" * 32, "digest"),
        ("ghcr.io/w@sha512:" + "ab" * 64, "sha512"),
        (f"ghcr.io/w@{DIGEST}@{DIGEST}", "digest"),
        ("ghcr.io/" + "a" * 256, "255"),
        ("a" * 2000 + "/b", "1024"),
        ("host:port/w", "registry"),
        ("-host.io/w", "registry"),
        ("user@host.io/w", "digest"),
        ("ghcr.io/../w", "name"),
        ("ghcr.io/w\n", "control"),
        ("ghcr.io/w\x1b[31m", "control"),
        ("gh cr.io/w", "registry"),
        ("oci:", "path"),
        ("oci:a:b c", "tag"),
        ("oci:a:--flag", "tag"),
    ],
)
def test_what_is_not_a_reference_is_refused_with_a_reason(source: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(source, cwd=CWD)
    assert words in f"{caught.value.message} {caught.value.hint}"
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_is_a_reference_or_refused(source: str) -> None:
    try:
        reference = parse(source, cwd=CWD)
    except IIIError:
        return
    assert "\n" not in reference.canonical
    if isinstance(reference, RegistryReference):
        assert reference.transport.startswith("docker://")


@pytest.mark.parametrize(
    "source", ["ghcr.io/o/w", "foo:1", f"ghcr.io/o/w@{DIGEST}", "oci:dir", "docker-archive:a@b.tar", "oci-archive:x"]
)
def test_images_are_accepted(source: str) -> None:
    assert accepts(source)


@pytest.mark.parametrize("source", ["./x", "/x/y", "~/x", "../x:1", "name", "name@1.0", "name@^1:2"])
def test_paths_and_names_are_left_to_others(source: str) -> None:
    assert not accepts(source)

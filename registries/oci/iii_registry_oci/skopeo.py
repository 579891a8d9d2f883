"""skopeo as a library: manifests and blobs from registries and ``docker-archive`` files.

skopeo knows the transports, authentication, proxies, mirrors and signature policies of the containers tools, and reads
the files in which users configure them. No secret passes through here: skopeo finds the auth file by the environment.

An archive is handed to it as a plain file that is open already, so that it neither unpacks it nor opens a path that
leads elsewhere by now. OCI archives and layouts never get here (`iii_registry_oci.local` says why).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import trio

from iii_core.errors import DigestMismatch, IIIError, ImageError, ImageUnsafe, RegistryUnreachable
from iii_registry_oci import skopeo_errors
from iii_registry_oci.layers.limits import MIB, Limits
from iii_registry_oci.local.policy import find_policy
from iii_registry_oci.manifest import Platform
from iii_registry_oci.process import read_bounded, running
from iii_registry_oci.reference import LocalReference, Reference, RegistryReference

INSPECT_SECONDS = 60
STALL_SECONDS = 90  # without a byte, while copying
POLL_SECONDS = 0.1
BACKOFF_SECONDS = (1.0, 3.0)  # spec worker-cli §4: three attempts
STDERR_MAX = 64 * 1024
SLACK = 8 * MIB  # manifests and configurations beside the layers

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_PASSED = (
    "PATH",
    "HOME",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "REGISTRY_AUTH_FILE",
    "DOCKER_CONFIG",
    "CONTAINERS_REGISTRIES_CONF",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
)
_Result = TypeVar("_Result")


class Skopeo:
    """skopeo with a user's settings. Methods may be called concurrently, and are bounded in time.

    Args:
        environ: where the settings are: the containers tools' own, and ``III_INSECURE_REGISTRIES`` (spec §0.9).
        limits: of manifests.
    """

    def __init__(self, environ: Mapping[str, str], limits: Limits) -> None:
        self._environ = {name: environ[name] for name in _PASSED if name in environ}
        listed = environ.get("III_INSECURE_REGISTRIES", "").split(",")
        self._insecure = {host.strip().lower() for host in listed if host.strip()}
        self._limits = limits

    def is_insecure(self, reference: Reference) -> bool:
        """Whether plain HTTP is allowed: on loopback, and where the user said so."""
        if isinstance(reference, LocalReference):
            return False
        host = reference.registry.rpartition(":")[0] if _has_port(reference.registry) else reference.registry
        return host in _LOOPBACK or host in self._insecure or reference.registry in self._insecure

    async def manifest(
        self, reference: Reference, digest: str | None, scratch: Path, *, archive: int | None = None
    ) -> bytes:
        """The manifest or index that ``reference`` leads to, or the one of ``digest`` beside it, as it was stored.

        ``archive`` is the open file of a `LocalReference`. Raises the `ImageError` family. The bytes are as they came:
        nothing is checked but their number.
        """
        return await self._inspect(reference, digest, archive, scratch)

    async def config(
        self, reference: Reference, digest: str | None, scratch: Path, *, archive: int | None = None
    ) -> bytes:
        """The configuration of the image with the manifest ``digest``, as it was stored; raises like `manifest`."""
        return await self._inspect(reference, digest, archive, scratch, "--config")

    async def _inspect(
        self, reference: Reference, digest: str | None, archive: int | None, scratch: Path, *options: str
    ) -> bytes:
        command = ["inspect", "--raw", *options, *self._tls(reference, "--tls-verify")]
        command.append(_source(reference, digest, archive))

        async def attempt() -> bytes:
            with trio.move_on_after(INSPECT_SECONDS):
                return await self._run(command, reference, archive, scratch)
            raise _too_slow(reference, INSPECT_SECONDS)

        return await _retry(attempt)

    async def copy(
        self,
        reference: Reference,
        digest: str | None,
        platform: Platform,
        staging: Path,
        *,
        expected: int,
        arrived: Callable[[int], None],
        archive: int | None = None,
    ) -> None:
        """Copy an image's blobs to ``staging/blobs/sha256/``; those that are there already are not fetched.

        Args:
            reference: where from.
            digest: of the manifest.
            platform: what the manifest is for.
            staging: an empty folder but for ``blobs``; temporary files of skopeo are in it too.
            expected: bytes to come; a source that sends far more is cut off.
            arrived: told the bytes that are here, several times a second.
            archive: the open file of a `LocalReference`.
        """
        command = ["copy", "--quiet", "--dest-oci-accept-uncompressed-layers", "--remove-signatures"]
        command += [*self._tls(reference, "--src-tls-verify"), f"--dest-shared-blob-dir={staging / 'blobs'}"]
        command += [_source(reference, digest, archive), f"oci:{staging / 'layout'}:image"]
        chosen = [f"--override-os={platform.os}", f"--override-arch={platform.architecture}"]

        async def attempt() -> None:
            watch = _Watch(reference, staging, expected, arrived)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch.run, nursery.cancel_scope)
                try:
                    await self._run(command, reference, archive, staging, *chosen)
                except IIIError as error:
                    watch.error = error  # raised below, where no nursery makes a group of it
                nursery.cancel_scope.cancel()
            if watch.error:
                raise watch.error

        await _retry(attempt)

    def _tls(self, reference: Reference, option: str) -> list[str]:
        if isinstance(reference, LocalReference):
            return []
        return [f"{option}={'false' if self.is_insecure(reference) else 'true'}"]

    async def _run(
        self, arguments: list[str], reference: Reference, archive: int | None, scratch: Path, *options: str
    ) -> bytes:
        """Run skopeo to its end; gives its stdout. Raises what its stderr says."""
        policy = [] if find_policy(self._environ) else ["--insecure-policy"]
        command = ["skopeo", *policy, f"--tmpdir={scratch}", *options, *arguments]
        outputs: dict[str, bytes] = {}

        async def collect(name: str, stream: trio.abc.ReceiveStream | None, most: int) -> None:
            assert stream is not None
            outputs[name] = await read_bounded(stream, most)

        inherited = () if archive is None else (archive,)
        async with running(
            command, env=self._environ, cwd=scratch, install="skopeo 1.9 or newer", pass_fds=inherited
        ) as process:
            assert process.stdin is not None
            await process.stdin.aclose()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(collect, "stdout", process.stdout, self._limits.manifest)
                nursery.start_soon(collect, "stderr", process.stderr, STDERR_MAX)
                status = await process.wait()
        if status:
            said = outputs["stderr"]
            if archive is not None:
                said = said.replace(_descriptor(archive).encode(), b"the archive")
            raise skopeo_errors.translate(said, reference, status)
        if len(outputs["stdout"]) > self._limits.manifest:
            raise ImageUnsafe(f"A document of {reference.canonical} has more than {self._limits.manifest} bytes")
        return outputs["stdout"]


class _Watch:
    """Reports what arrives, from the sizes of files (skopeo prints no progress without a terminal).

    ``error`` says why it cancelled the copy: nothing came any more, or far too much.
    """

    def __init__(self, reference: Reference, staging: Path, expected: int, arrived: Callable[[int], None]) -> None:
        self._reference = reference
        self._staging = staging
        self._expected = expected
        self._arrived = arrived
        self.error: IIIError | None = None

    async def run(self, copy: trio.CancelScope) -> None:
        """Watch until cancelled; cancels ``copy`` once there is an error."""
        before = size_of(self._staging)
        last, last_change = 0, trio.current_time()
        while self.error is None:
            await trio.sleep(POLL_SECONDS)
            now = size_of(self._staging) - before
            if now > self._expected + SLACK:
                self.error = DigestMismatch(
                    f"{self._reference.canonical} sends more than the {self._expected} bytes of its manifest"
                )
            elif now != last:
                last, last_change = now, trio.current_time()
                self._arrived(min(now, self._expected))
            elif trio.current_time() - last_change > STALL_SECONDS:
                self.error = _too_slow(self._reference, STALL_SECONDS)
        copy.cancel()


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder that others write to meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # renamed or removed since
            total += path.lstat().st_size if path.is_file() else 0
    return total


async def _retry(attempt: Callable[[], Awaitable[_Result]]) -> _Result:
    """Try three times what may go better the next time."""
    for pause in BACKOFF_SECONDS:
        try:
            return await attempt()
        except RegistryUnreachable as error:
            if not error.details.get("transient"):
                raise
        await trio.sleep(pause)
    return await attempt()


def _source(reference: Reference, digest: str | None, archive: int | None) -> str:
    """What skopeo calls it; a digest says nothing to an archive, of which skopeo makes up the manifest."""
    if isinstance(reference, RegistryReference):
        return reference.pinned(digest) if digest else reference.transport
    assert reference.scheme == "docker-archive"
    assert archive is not None
    return f"docker-archive:{_descriptor(archive)}" + (f":{reference.selector}" if reference.selector else "")


def _descriptor(archive: int) -> str:
    return f"/proc/self/fd/{archive}"


def _too_slow(reference: Reference, seconds: float) -> ImageError:
    if isinstance(reference, LocalReference):
        return ImageError(f"{reference.canonical}: reading it made no progress for {math.ceil(seconds)} seconds")
    return RegistryUnreachable(
        f"{reference.canonical}: no answer within {math.ceil(seconds)} seconds",
        hint="check the network, and try again",
        details={"transient": True},
    )


def _has_port(registry: str) -> bool:
    return registry.rpartition(":")[2].isdigit() and not registry.endswith("]")

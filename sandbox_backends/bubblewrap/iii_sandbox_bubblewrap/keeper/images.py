"""Read-only image mounts, each made once in the keeper's namespace and shared by the sandboxes of that image."""

from __future__ import annotations

import errno
import os
import select
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from iii_core.sandbox import linux
from iii_sandbox_bubblewrap.keeper.identity import RANGE, IdMap, contiguous, namespace_fd

_MOUNT_TIMEOUT = 10.0


class MountFailed(Exception):
    """An image could not be mounted; the text says why."""


@dataclass
class _Mounted:
    directory: str
    server: subprocess.Popen[bytes] | None  # squashfuse, where the kernel may not mount


class ImageMounts:
    """Mounts by image path. ``folder`` is an existing private folder, covered with a tmpfs here."""

    def __init__(self, folder: str, idmap: IdMap, *, privileged: bool) -> None:
        linux.mount("tmpfs", folder, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0700")
        self._folder = Path(folder)
        self.idmap = idmap
        self._privileged = privileged
        self._mounted: dict[str, _Mounted] = {}
        self._count = 0

    def acquire(self, image: str) -> str:
        """The directory where ``image`` is mounted. Raises `MountFailed`."""
        known = self._mounted.get(image)
        if known is not None and (known.server is None or known.server.poll() is None):
            return known.directory
        if known is not None:  # its file system server died: that mount is dead too
            self.release(image)
        directory = self._directory()
        mounted = self._mount_in_kernel(image, directory) if self._privileged else self._mount_by_fuse(image, directory)
        self._mounted[image] = mounted
        return mounted.directory

    def release(self, image: str) -> None:
        """Unmount; sandboxes that still use the image keep it until they end."""
        mounted = self._mounted.pop(image, None)
        if mounted is not None:
            linux.unmount(mounted.directory)

    def servers(self) -> set[int]:
        """Process ids of the mounts' file system servers."""
        return {mounted.server.pid for mounted in self._mounted.values() if mounted.server is not None}

    def server_ended(self, pid: int, status: int) -> bool:
        """Whether the reaped process was the server of one of our mounts."""
        for mounted in self._mounted.values():
            if mounted.server is not None and mounted.server.pid == pid:
                mounted.server.returncode = os.waitstatus_to_exitcode(status)
                return True
        return False

    def _directory(self) -> str:
        self._count += 1
        directory = self._folder / str(self._count)
        directory.mkdir(mode=0o755)
        return str(directory)

    def _mount_in_kernel(self, image: str, directory: str) -> _Mounted:
        done = subprocess.run(
            ["mount", "-t", "squashfs", "-o", "loop,ro,nodev,nosuid", "--", image, directory],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_MOUNT_TIMEOUT,
            check=False,
        )
        if done.returncode != 0:
            raise MountFailed(done.stderr.decode(errors="replace").strip())
        return _Mounted(self._with_ids(directory), None)

    def _with_ids(self, directory: str) -> str:
        """The mount again under our ids; where the kernel cannot do that, ids become the machine's own for good."""
        if self.idmap.root == (0, 0):
            return directory
        mapped = self._directory()
        try:
            with namespace_fd(self.idmap) as namespace:
                linux.clone_mount_idmapped(directory, mapped, namespace)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):  # squashfs: since Linux 6.2
                raise
            self.idmap = contiguous(0, RANGE)
            return directory
        linux.unmount(directory)
        return mapped

    def _mount_by_fuse(self, image: str, directory: str) -> _Mounted:
        program = shutil.which("squashfuse_ll") or shutil.which("squashfuse")
        if program is None:
            raise MountFailed("squashfuse is not installed")
        messages = os.memfd_create("squashfuse-stderr")
        try:
            return self._serve(program, image, directory, messages)
        finally:
            os.close(messages)

    def _serve(self, program: str, image: str, directory: str, messages: int) -> _Mounted:
        before = Path(directory).stat().st_dev
        server = subprocess.Popen(
            [program, "-f", "-o", "ro,nodev,nosuid", image, directory],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=messages,
        )
        if _wait_mounted(directory, before, server):
            return _Mounted(directory, server)
        server.kill()
        server.wait()
        raise MountFailed(_text(messages) or "squashfuse did not mount in time")


def _text(descriptor: int) -> str:
    return os.pread(descriptor, 4096, 0).decode(errors="replace").strip()


def _wait_mounted(directory: str, before: int, server: subprocess.Popen[bytes]) -> bool:
    """Wait for the mount table to change (``proc_pid_mountinfo(5)`` is pollable) until something is mounted there."""
    deadline = time.monotonic() + _MOUNT_TIMEOUT
    pidfd = os.pidfd_open(server.pid)
    try:
        with Path("/proc/self/mountinfo").open("rb") as table:
            poller = select.poll()
            poller.register(table, select.POLLPRI | select.POLLERR)
            poller.register(pidfd, select.POLLIN)
            while time.monotonic() < deadline and server.poll() is None:
                if Path(directory).stat().st_dev != before:
                    return True
                poller.poll(max(1, (deadline - time.monotonic()) * 1000))
                table.seek(0)
                table.read()
    finally:
        os.close(pidfd)
    return False

"""Where QEMU finds a guest's files and sockets: one short folder per guest.

An ordinary user's QEMU runs as that user, and opens the files where they are. Root's QEMU runs as a user of its own,
who can read neither root's home nor the private folders of the engine: so what a guest needs, and nothing else, is
bind-mounted into a folder which that user can enter. The sandbox host's mount namespace is private, so these mounts
end with it.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import pwd
import shutil
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from iii_core.errors import BackendUnavailable, SandboxError

KVM: Final = Path("/dev/kvm")
_ROOTS_FOLDER: Final = Path("/run/iii-vm")
_MS_BIND: Final = 4096
_MNT_DETACH: Final = 2


@dataclass(frozen=True, slots=True)
class User:
    """Whom QEMU runs as."""

    name: str
    uid: int
    gid: int

    @classmethod
    def named(cls, name: str) -> User:
        """Raises `BackendUnavailable` if there is no such user."""
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            raise BackendUnavailable(
                f"there is no user {name!r} for QEMU to run as",
                hint="apt install libvirt-daemon-system, which makes it, or set `user` of the libvirt backend",
            ) from None
        return cls(name, entry.pw_uid, entry.pw_gid)

    def may_write(self, path: Path) -> bool:
        """Whether the user may open it for writing, by its permissions alone."""
        status = path.stat()
        owned = status.st_uid == self.uid and status.st_mode & 0o200
        shared = status.st_gid in (self.gid, *os.getgrouplist(self.name, self.gid)) and status.st_mode & 0o020
        return bool(owned or shared or status.st_mode & 0o002)


@dataclass(slots=True)
class Place:
    """The folder of one guest."""

    folder: Path
    user: User | None
    mounts: list[Path] = field(default_factory=list[Path])

    def show(self, name: str, source: Path) -> Path:
        """The path by which QEMU reaches ``source``."""
        if self.user is None:
            return source
        target = self.folder / name
        target.touch(mode=0o600)
        _mount(source, target)
        self.mounts.append(target)
        return target

    def listen(self, name: str) -> socket.socket:
        """A listening Unix socket that QEMU can connect to, at `path` (name)."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.bind(str(self.path(name)))
            self.give(self.path(name))
            listener.listen(1)
        except BaseException:
            listener.close()
            raise
        return listener

    def path(self, name: str) -> Path:
        """Of a socket."""
        return self.folder / name

    def give(self, path: Path) -> None:
        """Let QEMU own a file."""
        if self.user is not None:
            os.chown(path, self.user.uid, self.user.gid)

    def remove(self) -> None:
        """Undo it all. Idempotent."""
        while self.mounts:
            _libc().umount2(os.fsencode(self.mounts.pop()), _MNT_DETACH)
        shutil.rmtree(self.folder, ignore_errors=True)


class Places:
    """The folders of all guests of one driver."""

    def __init__(self, runtime_dir: Path, user: User | None, purpose: str) -> None:
        project = hashlib.sha256(os.fsencode(runtime_dir)).hexdigest()[:10]
        top = runtime_dir / "vm" if user is None else _ROOTS_FOLDER / project
        self.scope: Final = f"{project[:8]}-{purpose}"
        self.user: Final = user
        self.libvirt: Final = top / "libvirt"
        self.base: Final = top / purpose

    def open(self) -> None:
        """Make the base folder, empty: what a killed predecessor left is removed. Raises `BackendUnavailable`."""
        if self.user is not None and not has_private_mounts():
            raise BackendUnavailable(
                "as root, this backend works only in a process whose mounts are its own",
                hint="open it in a sandbox host (iii_core.sandbox.hostclient)",
            )
        self.close()
        self._make(self.base)

    def write_qemu_conf(self) -> Path:
        """Make the root folder of an embedded libvirt, with its configuration."""
        self._make(self.libvirt / "etc")
        (self.libvirt / "etc" / "qemu.conf").write_text(render_qemu_conf(self.user), encoding="ascii")
        return self.libvirt

    def _make(self, folder: Path) -> None:
        """A private folder or, if QEMU has a user of its own, one that it can pass through."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.user is None:
            return
        _require_ours(_ROOTS_FOLDER)
        while folder != _ROOTS_FOLDER.parent:
            folder.chmod(0o711)
            folder = folder.parent

    def make(self, sandbox_id: str) -> Place:
        """A new folder. Its name is short whatever the id is: paths of sockets have at most 107 bytes (unix(7))."""
        folder = self.base / hashlib.sha256(sandbox_id.encode()).hexdigest()[:10]
        folder.mkdir(mode=0o700)
        if self.user is not None:
            folder.chmod(0o750)
            os.chown(folder, 0, self.user.gid)
        return Place(folder, self.user)

    def close(self) -> None:
        """Remove the base folder."""
        for mounted in _mounts_below(self.base):
            _libc().umount2(os.fsencode(mounted), _MNT_DETACH)
        shutil.rmtree(self.base, ignore_errors=True)


def has_private_mounts() -> bool:
    """Whether this process sees other mounts than the one that started it (mount_namespaces(7))."""
    try:
        return Path("/proc/self/ns/mnt").readlink() != Path(f"/proc/{os.getppid()}/ns/mnt").readlink()
    except OSError:
        return False


def hide_kvm(places: Places) -> None:
    """Let libvirt see no KVM that its guests may not use.

    It asks QEMU for its abilities with more rights than a guest's QEMU has; where only root may open ``/dev/kvm``, the
    two never agree, and it would ask again before each boot.
    """
    if KVM.exists() and has_private_mounts():
        nothing = places.write_qemu_conf() / "no-kvm"
        nothing.touch(mode=0o000)
        if not _is_mounted(KVM):
            _mount(nothing, KVM)


def render_qemu_conf(user: User | None) -> str:
    """libvirt's ``qemu.conf`` of an embedded connection."""
    settings: dict[str, object] = {"stdio_handler": "file"}
    if user is not None:
        settings |= {
            "user": f"+{user.uid}",
            "group": f"+{user.gid}",
            "dynamic_ownership": 0,
            "remember_owner": 0,
            "security_driver": "none",
            "namespaces": [],
            "cgroup_controllers": [],
        }
    return "".join(f"{name} = {_conf(value)}\n" for name, value in settings.items())


def _conf(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _mount(source: Path, target: Path) -> None:
    if _libc().mount(os.fsencode(source), os.fsencode(target), None, _MS_BIND, None) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise SandboxError(f"cannot show {source} to QEMU: {reason}", details={"path": str(source)})


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _mounts_below(base: Path) -> list[Path]:
    table = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    points = (Path(line.split()[4]) for line in table)
    return [point for point in points if point.is_relative_to(base)]


def _is_mounted(path: Path) -> bool:
    return path in _mounts_below(path)


def _require_ours(folder: Path) -> None:
    with suppress(FileNotFoundError):
        if folder.lstat().st_uid != os.geteuid() or folder.is_symlink():
            raise BackendUnavailable(f"{folder} belongs to somebody else", hint=f"as root: rm -r {folder}")

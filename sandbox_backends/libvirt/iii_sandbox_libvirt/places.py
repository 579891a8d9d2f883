"""Where QEMU finds a guest's files and sockets: one short folder per guest.

An ordinary user's QEMU runs as that user, and opens the files where they are. Root's QEMU runs as a user of its own,
who can read neither root's home nor the private folders of the engine: so what a guest needs, and nothing else, is
bind-mounted into a folder which that user can enter. The sandbox host's mount namespace is private, so these mounts
end with it. A libvirt daemon does not see them: with one of those, the user must be let to the files themselves.

Names are short, for libvirt adds much to them for its own sockets, whose paths have at most 107 bytes (unix(7)). Where
the engine's runtime folder leaves no room for that, all is in the one that the engine itself falls back to.
"""

from __future__ import annotations

import atexit
import hashlib
import itertools
import os
import shutil
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from iii_core.errors import BackendUnavailable, SandboxError
from iii_core.project.locate import SOCKET_PATH_LIMIT, last_runtime_base, make_private
from iii_core.sandbox import linux
from iii_sandbox_libvirt import mounts
from iii_sandbox_libvirt.leases import lock, take_id
from iii_sandbox_libvirt.users import User

if TYPE_CHECKING:
    from iii_sandbox_libvirt.leases import IdLease

KVM: Final = Path("/dev/kvm")
ROOTS_FOLDER: Final = Path("/run/iii-vm")
_LIBVIRT: Final = "lv"
_LIBVIRTS_LONGEST: Final = len("/lib/qemu/domain-99999-") + 20 + len("/monitor.sock")
"""What libvirt adds: the number of a guest, and the first 20 characters of its name (``virDomainDefGetShortName``)."""
_IDS: Final = "ids"


@dataclass(slots=True)
class Place:
    """The folder of one guest.

    Attributes:
        folder: root's, and the guest's QEMU may pass through it.
        user: whom QEMU runs as, if not as us.
        binds: whether it sees our mounts.
        lease: makes that user nobody else's.
    """

    folder: Path
    user: User | None
    binds: bool
    lease: IdLease | None = None
    mounted: list[Path] = field(default_factory=list[Path])
    given: list[Path] = field(default_factory=list[Path])

    def show(self, name: str, source: Path) -> Path:
        """The path by which QEMU reaches ``source``. Raises `SandboxError` if it may not read it."""
        if self.user is None:
            return source
        _require_readable(self.user, source, through_folders=not self.binds)
        if not self.binds:
            return source
        target = self.folder / name
        target.touch(mode=0o600)
        mounts.bind(source, target)
        self.mounted.append(target)
        return target

    def listen(self, name: str) -> socket.socket:
        """A listening Unix socket that QEMU can connect to, at `path` (name). Not blocking."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self.path(name).unlink(missing_ok=True)
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
        """Let QEMU own a file, until `remove`."""
        if self.user is not None:
            os.chown(path, self.user.uid, self.user.gid)
            self.given.append(path)

    def remove(self) -> None:
        """Undo it all. Idempotent."""
        while self.mounted:
            mounts.unbind(self.mounted.pop())
        while self.given:
            with suppress(FileNotFoundError):
                os.chown(self.given.pop(), os.geteuid(), os.getegid())
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.lease is not None:
            self.lease.release()


class Places:
    """The folders of all guests of one open driver.

    Args:
        runtime_dir: whose drivers share a libvirt folder.
        user: whose rights QEMU has, if not ours. Where QEMU sees our mounts, each has a user id of its own besides,
            and this one is asked for the rest: whether KVM may be used, and what QEMU can do.
        binds: whether QEMU sees the mounts of this process.
        purpose: a letter or more; the name that guests get.
    """

    def __init__(self, runtime_dir: Path, user: User | None, *, binds: bool, purpose: str) -> None:
        self._project = hashlib.sha256(os.fsencode(runtime_dir)).hexdigest()[:10]
        self._top = _top_for(runtime_dir, self._project) if user is None else ROOTS_FOLDER / self._project
        self._purpose = purpose
        self._lease: int | None = None
        self.user: Final = user
        self.binds: Final = binds
        self.libvirt: Final = self._top / _LIBVIRT
        self.base = self._top

    def open(self) -> None:
        """Claim a base folder for as long as this process lives, or until `close`. Raises `BackendUnavailable`."""
        if self.user is not None and self.binds and not mounts.have_own():
            raise BackendUnavailable(
                "as root, this backend works only in a process whose mounts are its own",
                hint="open it in a sandbox host (iii_core.sandbox.hostclient)",
            )
        for number in itertools.count(1):
            self.base = self._top / f"{self._purpose}{number}"
            self._make(self.base)
            self._lease = lock(self.base)
            if self._lease is not None:
                return

    def domain(self, sandbox_id: str) -> str:
        """The name of a guest's domain."""
        return f"iii-{self._project}-{self.base.name}-{sandbox_id}"

    def is_abandoned(self, domain: str) -> bool:
        """Whether a domain was left by a driver of this project that has not been closed."""
        mine, _, rest = domain.partition(f"iii-{self._project}-")
        if mine or not rest:
            return False
        return self._is_free(self._top / rest.partition("-")[0])

    def _is_free(self, base: Path) -> bool:
        """Whether we may do with it what we like: it is ours, or nobody's."""
        if base == self.base or not base.exists():
            return True
        lease = lock(base)
        if lease is not None:
            os.close(lease)
        return lease is not None

    def clear(self) -> None:
        """Remove what killed predecessors left."""
        for base in self._bases():
            if self._is_free(base):
                _remove(base)
        self._make(self.base)

    def write_qemu_conf(self) -> Path:
        """Make the root folder of an embedded libvirt, with its configuration."""
        self._make(self.libvirt / "etc")
        (self.libvirt / "etc" / "qemu.conf").write_text(render_qemu_conf(self.user), encoding="ascii")
        return self.libvirt

    def _make(self, folder: Path) -> None:
        """A private folder or, if QEMU has a user of its own, one that it can pass through."""
        if self._top.parent == last_runtime_base():
            _make_last_resort(self._top)
        for path in (self._top, folder):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.user is None:
            return
        _require_ours(ROOTS_FOLDER)
        while folder != ROOTS_FOLDER.parent:
            folder.chmod(0o711)
            folder = folder.parent

    def let_in(self, folder: Path) -> None:
        """Let QEMU's user pass through a folder of ours, if it has to."""
        if self.user is not None and not self.binds:
            folder.chmod(0o711)

    def make(self, sandbox_id: str) -> Place:
        """A new folder. Its name is short whatever the id is: paths of sockets have at most 107 bytes (unix(7))."""
        folder = self.base / hashlib.sha256(sandbox_id.encode()).hexdigest()[:10]
        folder.mkdir(mode=0o700)
        place = Place(folder, self.user, self.binds)
        try:
            if self.user is not None and self.binds:
                place.lease = take_id(ROOTS_FOLDER / _IDS)
                place.user = User(f"of id {place.lease.id}", place.lease.id, place.lease.id)
            if place.user is not None:
                folder.chmod(0o750)
                os.chown(folder, 0, place.user.gid)
        except BaseException:
            place.remove()
            raise
        return place

    def close(self) -> None:
        """Remove the base folder; libvirt's goes with the process, for it does not let go of it before. Idempotent."""
        if self._lease is None:
            return
        _remove(self.base)
        os.close(self._lease)
        self._lease = None
        atexit.register(self._remove_top)

    def _remove_top(self) -> None:
        if self._top.is_dir() and not self._bases():
            shutil.rmtree(self._top, ignore_errors=True)

    def _bases(self) -> list[Path]:
        return [path for path in self._top.iterdir() if path.name != _LIBVIRT]


def _top_for(runtime_dir: Path, project: str) -> Path:
    """The folder of all drivers of an ordinary user's project."""
    top = runtime_dir / "vm"
    room = SOCKET_PATH_LIMIT - len(os.fsencode(top / _LIBVIRT))
    return top if room >= _LIBVIRTS_LONGEST else last_runtime_base() / f"vm-{project}"


def _make_last_resort(top: Path) -> None:
    """Everybody may write where it is. Raises `BackendUnavailable` if somebody else was there first."""
    for folder in (top.parent, top):
        try:
            make_private(folder)
        except OSError as error:
            raise BackendUnavailable(
                f"libvirt's sockets have no place: the engine's folder for sockets has too long a name, and {folder} "
                f"cannot be used: {error.strerror}",
                hint=f"set XDG_RUNTIME_DIR to a private folder with a shorter name, or remove {folder}",
            ) from error


def hide_kvm(places: Places) -> None:
    """Let libvirt see no KVM that its guests may not use.

    It asks QEMU for its abilities with more rights than a guest's QEMU has; where only root may open ``/dev/kvm``, the
    two never agree, and it would ask again before each boot.
    """
    if KVM.exists() and mounts.have_own():
        nothing = places.write_qemu_conf() / "no-kvm"
        nothing.touch(mode=0o000)
        if KVM not in mounts.below(KVM):
            mounts.bind(nothing, KVM)


def lend_kvm(places: Places) -> None:
    """Let every QEMU of ours use KVM if `Places.user` may, as a member of the device's group: its own user is in none.

    They, and nobody else, see a device of our own at its place.
    """
    user = places.user
    if user is None or not user.may_write(KVM) or KVM.stat().st_mode & 0o006 == 0o006 or not mounts.have_own():
        return
    node = places.write_qemu_conf() / "kvm"
    node.unlink(missing_ok=True)
    try:
        os.mknod(node, stat.S_IFCHR, KVM.stat().st_rdev)
        node.chmod(0o666)
        mounts.bind(node, KVM)
        linux.mount("none", str(KVM), None, linux.MS_REMOUNT | linux.MS_BIND | linux.MS_NOSUID)  # not MS_NODEV
    except OSError as error:
        raise BackendUnavailable(
            f"{KVM} cannot be given to QEMU's own users: {error.strerror}",
            hint=f"let everybody open it (chmod 666 {KVM}), or set `accelerator: tcg`",
        ) from error


def render_qemu_conf(user: User | None) -> str:
    """libvirt's ``qemu.conf`` of an embedded connection."""
    settings: dict[str, object] = {"stdio_handler": "file", "seccomp_sandbox": 1}
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


def _remove(folder: Path) -> None:
    for mounted in mounts.below(folder):
        mounts.unbind(mounted)
    shutil.rmtree(folder, ignore_errors=True)


def _require_readable(user: User, path: Path, *, through_folders: bool) -> None:
    barrier = user.barrier(path, through_folders=through_folders)
    if barrier is not None:
        raise SandboxError(
            f"QEMU's user {user.name} may not read {path}: {barrier} keeps it out",
            hint=f"chmod o+r {path}"
            if barrier == path
            else f"chmod o+x {barrier}; or set `connection: embed`, which needs no such thing",
            details={"path": str(path), "barrier": str(barrier)},
        )


def _require_ours(folder: Path) -> None:
    with suppress(FileNotFoundError):
        if folder.lstat().st_uid != os.geteuid() or folder.is_symlink():
            raise BackendUnavailable(f"{folder} belongs to somebody else", hint=f"as root: rm -r {folder}")

"""What QEMU's own user gets to see of root's files; in a mount namespace of its own, for `test_libvirt_places`.

    unshare --mount python placesrunner.py FOLDER

FOLDER is root's alone. Prints one JSON object of what was found.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from iii_sandbox_libvirt import mounts, places
from iii_sandbox_libvirt.leases import take_id
from iii_sandbox_libvirt.places import Place, Places
from iii_sandbox_libvirt.users import User

from iii_core.errors import IIIError

found: dict[str, object] = {}
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "none", "/run"], check=True)
folder = Path(sys.argv[1])
account = user = User.named("libvirt-qemu")


def told(act: Callable[[], object]) -> str:
    """The message and hint of an error."""
    try:
        act()
    except IIIError as error:
        return f"{error.code} {error.message} | {error.hint}"
    return "no error"


def as_user(act: Callable[[], object]) -> str:
    """What becomes of ``act`` when QEMU's user does it."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
        try:
            said = str(act())
        except OSError as error:
            said = type(error).__name__
        theirs.sendall(said.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    theirs.close()
    with ours:
        return ours.recv(1000).decode()


def connect(path: Path) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
    return "connected"


secret, shared, data = folder / "secret", folder / "shared", folder / "data"
for path, mode in ((secret, 0o600), (shared, 0o644), (data, 0o600)):
    path.write_text(path.name)
    path.chmod(mode)

runtime = folder / "run"
driver = Places(runtime, user, binds=True, purpose="vm")
driver.open()
place = driver.make("x" * 63)
assert place.user is not None
user, other = place.user, driver.make("y" * 63)
assert other.user is not None
found["ids-differ"] = other.user.uid != user.uid
others = other.folder / "others"
others.write_text("others")
other.give(others)
found["owner-of-given"] = others.stat().st_uid == other.user.uid
place.give(data)
inside = {name: place.show(name, path) for name, path in (("shared", shared), ("data", data))}
found["outside"] = as_user(shared.read_text)
found["shared"] = as_user(inside["shared"].read_text)
found["shared-write"] = as_user(lambda: inside["shared"].write_text("changed"))
found["data-write"] = as_user(lambda: inside["data"].write_text("changed"))
found["data-now"] = data.read_text()
found["secret"] = told(lambda: place.show("secret", secret))
found["list-folder"] = as_user(lambda: sorted(path.name for path in place.folder.iterdir()))
found["others-folder"] = as_user(lambda: list(other.folder.iterdir()))
found["others-file"] = as_user(others.read_text)
found["list-above"] = as_user(lambda: list(driver.base.iterdir()))
with place.listen("link"):
    found["socket"] = as_user(lambda: connect(place.path("link")))
found["socket-length"] = len(str(place.path("console")))
place.remove()
place.remove()
other.remove()
found["data-owner"] = data.stat().st_uid
left = take_id(places.ROOTS_FOLDER / "ids")
os.close(left._descriptor or 0)  # what the kernel does when its process is killed
again = take_id(places.ROOTS_FOLDER / "ids")
found["ids-of-the-dead"] = [int(path.name) for path in (places.ROOTS_FOLDER / "ids").iterdir()] == [again.id]
again.release()
again.release()
found["ids-left"] = [path.name for path in (places.ROOTS_FOLDER / "ids").iterdir()]
found["mounts-left"] = [str(path) for path in mounts.below(driver.base)]
found["data-kept"] = data.exists()

places.KVM = Path("/run/kvm")  # type: ignore[misc]
os.mknod(places.KVM, stat.S_IFCHR, os.makedev(1, 3))  # /dev/null, which can be opened everywhere
os.chown(places.KVM, 0, account.gid)
places.KVM.chmod(0o600)
places.lend_kvm(driver)
found["kvm-of-root"] = as_user(lambda: places.KVM.open("r+b").close())
places.KVM.chmod(0o660)
found["kvm-of-a-group"] = as_user(lambda: places.KVM.open("r+b").close())
places.lend_kvm(driver)
found["kvm-lent"] = as_user(lambda: places.KVM.open("r+b").close())
mounts.unbind(places.KVM)
found["kvm-after"] = oct(places.KVM.stat().st_mode)
shutil.rmtree(driver.libvirt)

killed = Places(runtime, account, binds=True, purpose="vm")
killed.open()
killed.make("left").show("shared", shared)
domain = killed.domain("left")
found["of-the-living"] = driver.is_abandoned(domain)
os.close(killed._lease or 0)  # what the kernel does when its process is killed
found["of-the-dead"] = driver.is_abandoned(domain)
found["of-others"] = [driver.is_abandoned(name) for name in ("other", "iii-0000000000-vm1-x", f"x{domain}", "")]
driver.clear()
found["bases"] = sorted(path.name for path in driver.base.parent.iterdir())
found["mounts-of-the-dead"] = [str(path) for path in mounts.below(places.ROOTS_FOLDER) if path.parts[-3:-1]]
driver.close()
driver.close()
found["after-close"] = sorted(str(path) for path in driver.base.parent.iterdir())

unbound = Place(folder, account, binds=False)
found["unbound"] = told(lambda: unbound.show("shared", shared))
shutil.rmtree(places.ROOTS_FOLDER)
places.ROOTS_FOLDER.mkdir()
os.chown(places.ROOTS_FOLDER, 65534, 65534)
found["foreign"] = told(Places(runtime, account, binds=True, purpose="vm").open)
print(json.dumps(found))

"""What a machine is given to boot: command line, modules, initramfs, kernels."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from iii_sandbox_guest import Needs, agent_path, find_kernel, prepare_boot
from iii_sandbox_guest.boot import VSOCK_LINK, GuestMount, Network, render_cmdline
from iii_sandbox_guest.initramfs import build_initramfs, render_initramfs
from iii_sandbox_guest.kernel import kernels_dir, open_kernel
from iii_sandbox_guest.modules import Module, resolve_modules
from iii_sandbox_guest.vmlinux import decompress_lz4, extract_vmlinux, has_pvh_entry, read_release

from iii_core.errors import BackendUnavailable, SandboxError

from .machinekit import HOME, fetched_kernel

DEP = """\
kernel/fs/squashfs/squashfs.ko:
kernel/drivers/virtio/virtio_pci.ko.xz: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_ring.ko:
kernel/arch/x86/crypto/crc32c-intel.ko.gz:
"""
NEEDED = ["virtio_ring", "virtio"]
NETWORK = Network(address="192.0.2.130", prefix=25, gateway="192.0.2.129", nameservers=("192.0.2.3", "9.9.9.9"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A kernel's modules, invented."""
    folder = tmp_path / "modules"
    contents = {
        "kernel/fs/squashfs/squashfs.ko": b"squash",
        "kernel/drivers/virtio/virtio_pci.ko.xz": lzma.compress(b"pci"),
        "kernel/drivers/virtio/virtio.ko": b"virtio",
        "kernel/drivers/virtio/virtio_ring.ko": b"ring",
        "kernel/arch/x86/crypto/crc32c-intel.ko.gz": gzip.compress(b"crc"),
    }
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "modules.dep").write_text(DEP)
    (folder / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    return folder


def test_the_command_line_says_what_the_machine_has() -> None:
    common = "quiet loglevel=6 panic=-1 cryptomgr.notests no_timer_check"
    assert render_cmdline(Needs()) == (
        f"console=ttyS0 {common} iii.link=virtio:iii.agent iii.root=iii-root iii.format=squashfs iii.data=iii-data"
    )
    bare = Needs(link=VSOCK_LINK, image_format="erofs", data_disk=False, pids=100, console="hvc0")
    assert render_cmdline(bare) == (
        f"console=hvc0 {common} iii.link=vsock:1024 iii.root=iii-root iii.format=erofs iii.pids=100"
    )


def test_mounts_on_the_command_line() -> None:
    mounts = (
        GuestMount(tag="a", target="/data", writable=False),
        GuestMount(tag="b", target='/some place/a:b%"\udcff', writable=True),
    )
    assert render_cmdline(Needs(mounts=mounts)).endswith(
        " iii.mount=a:/data iii.mount=b:/some%20place/a%3Ab%25%22%FF:rw"
    )
    assert Needs(mounts=mounts).modules()[-1] == "virtiofs"
    long = tuple(GuestMount(tag=f"{number}", target="/" + "x" * 60, writable=True) for number in range(32))
    with pytest.raises(SandboxError, match=r"too long for a machine: .* 2047 fit") as caught:
        render_cmdline(Needs(mounts=long))
    assert "shorter targets" in (caught.value.hint or "")


def test_a_network_on_the_command_line() -> None:
    rendered = render_cmdline(Needs(network=NETWORK))
    assert rendered.endswith(" iii.net=192.0.2.130/25,192.0.2.129 iii.dns=192.0.2.3,9.9.9.9")


def test_a_machine_needs_the_modules_of_its_devices_only() -> None:
    assert Needs().modules() == ("virtio_pci", "virtio_console", "virtio_blk", "squashfs", "overlay", "ext4")
    other = Needs(link=VSOCK_LINK, bus="mmio", image_format="erofs", data_disk=False, network=NETWORK)
    assert other.modules() == (
        "virtio_mmio", "vmw_vsock_virtio_transport", "virtio_blk", "virtio_net", "erofs", "overlay",
    )  # fmt: skip


def test_modules_come_after_those_they_depend_on_and_once(tree: Path) -> None:
    found = resolve_modules(tree, ["squashfs", "virtio_pci", "virtio", "crc32c-intel", "ext4"])
    assert [module.name for module in found] == ["squashfs", *NEEDED, "virtio_pci", "crc32c_intel"]
    assert [module.read() for module in found] == [b"squash", b"ring", b"virtio", b"pci", b"crc"]


def test_a_missing_module_is_named_with_the_option_that_makes_it(tree: Path) -> None:
    with pytest.raises(BackendUnavailable, match=r"no module overlay \(it is made by CONFIG_OVERLAY_FS") as caught:
        resolve_modules(tree, ["virtio", "overlay"])
    assert caught.value.hint is not None
    assert "iii sandbox setup" in caught.value.hint
    assert caught.value.details["option"] == "CONFIG_OVERLAY_FS"


def test_modules_that_cannot_be_listed_or_read_are_an_error(tree: Path) -> None:
    with pytest.raises(BackendUnavailable, match="cannot be listed"):
        resolve_modules(tree / "nowhere", ["virtio"])
    (tree / "kernel/drivers/virtio/virtio_pci.ko.xz").write_bytes(b"no xz")
    with pytest.raises(BackendUnavailable, match=r"virtio_pci\.ko\.xz cannot be read"):
        resolve_modules(tree, ["virtio_pci"])[-1].read()


def test_an_initramfs_holds_the_agent_and_the_modules_and_nothing_else(tmp_path: Path) -> None:
    archive = render_initramfs(b"the agent", [("a.ko", b"first"), ("b.ko", b"second!")])
    assert _entries(archive) == {
        "dev": b"", "modules": b"", "proc": b"", "sys": b"", "dev/console": b"",
        "init": b"the agent", "modules/order": b"a.ko\nb.ko\n", "modules/a.ko": b"first", "modules/b.ko": b"second!",
    }  # fmt: skip
    if shutil.which("cpio") is not None:
        listed = subprocess.run(["cpio", "-tv"], input=archive, capture_output=True, check=True).stdout.decode()
        assert "crw-------   1 root     root       5,   1" in listed


def _entries(archive: bytes) -> dict[str, bytes]:
    """The content of a newc archive by name, read by the book."""
    found: dict[str, bytes] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * number : at + 14 + 8 * number], 16) for number in range(13)]
        size, name_size = fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        content = at + 110 + name_size + (-(110 + name_size) % 4)
        if name == "TRAILER!!!":
            return found
        found[name] = archive[content : content + size]
        at = content + size + (-size % 4)


BUILD = """
import os, sys
from pathlib import Path
os.umask(int(sys.argv[2], 8))
from iii_sandbox_guest.initramfs import build_initramfs
from iii_sandbox_guest.modules import resolve_modules
folder = Path(sys.argv[1])
modules = resolve_modules(folder / "modules", ["virtio_pci", "squashfs"])
print(build_initramfs(folder / "cache", folder / "agent", modules))
"""


def test_an_initramfs_is_the_same_bytes_whoever_builds_it_when_and_where(tree: Path, tmp_path: Path) -> None:
    built: list[Path] = []
    conditions = [("first", "000", "C", "UTC0"), ("a much longer place", "077", "C.UTF-8", "Pacific/Kiritimati")]
    for place, umask, locale, zone in conditions:
        folder = tmp_path / place
        shutil.copytree(tree, folder / "modules")
        (folder / "agent").write_bytes(b"the agent")
        os.utime(folder / "agent", (len(built) * 1e9, len(built) * 1e9))
        environ = {"LC_ALL": locale, "TZ": zone, "PYTHONHASHSEED": str(len(built)), "PATH": os.environ["PATH"]}
        argv = [sys.executable, "-c", BUILD, str(folder), umask]
        done = subprocess.run(argv, env=environ, cwd=folder, capture_output=True, text=True, check=True)
        built.append(Path(done.stdout.strip()))
    hashes = {hashlib.sha256(path.read_bytes()).hexdigest() for path in built}
    assert len(hashes) == 1
    assert built[0].name == built[1].name
    assert [path.parent.parent.name for path in built] == ["first", "a much longer place"]


def test_a_cached_initramfs_is_used_again_and_a_cut_one_is_not(tree: Path, tmp_path: Path) -> None:
    agent = tmp_path / "agent"
    agent.write_bytes(b"the agent")
    modules = resolve_modules(tree, ["virtio"])
    path = build_initramfs(tmp_path / "cache", agent, modules)
    before = path.stat()
    assert build_initramfs(tmp_path / "cache", agent, modules) == path
    assert path.stat().st_ino == before.st_ino
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert build_initramfs(tmp_path / "cache", agent, modules).read_bytes() == whole
    agent.write_bytes(b"another")
    assert build_initramfs(tmp_path / "cache", agent, modules) != path
    assert len(list((tmp_path / "cache").iterdir())) == 2


# --- kernels ---


def bzimage(release: str, payload: bytes = b"") -> bytes:
    """The head of a compressed kernel, as Documentation/arch/x86/boot.rst has it."""
    head = bytearray(2 * 512)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    head[0x20E:0x210] = (0x300 - 0x200).to_bytes(2, "little")
    head[0x248:0x24C] = (0).to_bytes(4, "little")
    head[0x24C:0x250] = len(payload).to_bytes(4, "little")
    version = f"{release} (builder) #1".encode()
    head[0x300 : 0x300 + len(version)] = version
    return bytes(head) + payload


def add_kernel(home: Path, release: str, tree: Path) -> Path:
    folder = kernels_dir(home) / release
    shutil.copytree(tree, folder / "modules")
    (folder / "vmlinuz").write_bytes(bzimage(release))
    return folder


def test_the_newest_kernel_that_will_do_is_chosen(tree: Path, tmp_path: Path) -> None:
    for release in ("6.1.0-9-cloud", "6.1.0-56-cloud", "6.1.0-100-cloud"):
        add_kernel(tmp_path, release, tree)
    (kernels_dir(tmp_path) / "6.1.0-100-cloud/modules/modules.dep").write_text("")
    found = find_kernel(tmp_path, ["virtio"], boot=tmp_path)
    assert found.release == "6.1.0-56-cloud"
    assert found.image.name == "vmlinuz"
    (found.image.parent / "vmlinux").write_bytes(b"unpacked")
    assert find_kernel(tmp_path, ["virtio"], boot=tmp_path).image.name == "vmlinux"


def test_a_kernel_of_the_machine_is_taken_where_none_was_fetched(tree: Path, tmp_path: Path) -> None:
    boot = tmp_path / "boot"
    boot.mkdir()
    (boot / "vmlinuz-6.1.0-test").write_bytes(bzimage("6.1.0-test"))
    shutil.copytree(tree, tmp_path / "trees" / "6.1.0-test")
    found = find_kernel(tmp_path, ["virtio"], boot=boot, trees=tmp_path / "trees")
    assert (found.release, found.image) == ("6.1.0-test", boot / "vmlinuz-6.1.0-test")
    assert found.modules == tmp_path / "trees" / "6.1.0-test"


def test_no_kernel_at_all_says_how_to_get_one(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="no kernel") as caught:
        find_kernel(tmp_path, boot=tmp_path)
    assert caught.value.hint == "fetch a kernel with: iii sandbox setup"
    folder = add_kernel(tmp_path, "6.1.0", tree)
    with pytest.raises(BackendUnavailable, match=r"6\.1\.0: the kernel .* has no module overlay"):
        find_kernel(tmp_path, ["overlay"], boot=tmp_path)
    (folder / "vmlinuz").unlink()
    with pytest.raises(BackendUnavailable, match="neither vmlinux nor vmlinuz"):
        find_kernel(tmp_path, boot=tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another user's file")
def test_a_kernel_that_may_not_be_read_is_said_to_be_that(tmp_path: Path) -> None:
    """As on Ubuntu, where /boot/vmlinuz-* is root's."""
    boot = tmp_path / "boot"
    boot.mkdir()
    image = boot / "vmlinuz-6.1.0-test"
    image.write_bytes(bzimage("6.1.0-test"))
    image.chmod(0o600)
    for folder in (boot, tmp_path, *tmp_path.parents[:2]):  # pytest's own
        folder.chmod(0o755)
    script = "import sys, os; from pathlib import Path; from iii_sandbox_guest import find_kernel\n"
    script += "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
    script += "find_kernel(Path('/nonexistent'), boot=Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", script, boot], capture_output=True, text=True, check=False)
    assert f"the kernel {image} may not be read by user 65534" in done.stderr


def test_a_configured_kernel_is_the_only_one_that_counts(tree: Path, tmp_path: Path) -> None:
    add_kernel(tmp_path, "6.1.0", tree)
    text = tmp_path / "text"
    text.write_text("not a kernel" * 100)
    for path, said in ((text, "is no Linux kernel image"), (tmp_path / "gone", "cannot be read")):
        with pytest.raises(BackendUnavailable, match=said):
            find_kernel(tmp_path, configured=path)
    (tmp_path / "alone").write_bytes(bzimage("6.1.0-alone"))
    with pytest.raises(BackendUnavailable, match=r"modules of the kernel 6\.1\.0-alone are not in"):
        open_kernel(tmp_path / "alone")


# --- what is in a compressed kernel ---

LZ4 = b"\x02\x21\x4c\x18"
LZ4_BLOCK = b"\x35abc\x03\x00\x90xxxxxyyyy"


def test_lz4_is_unpacked_by_the_book() -> None:
    whole = LZ4 + len(LZ4_BLOCK).to_bytes(4, "little") + LZ4_BLOCK + (21).to_bytes(4, "little")
    assert decompress_lz4(whole) == b"abcabcabcabc" + b"xxxxxyyyy"
    block = b"\x1fa\x01\x00\xff\x00" + b"\x50bcdef"  # lengths of 15 and more go on in bytes of their own
    assert decompress_lz4(LZ4 + len(block).to_bytes(4, "little") + block) == b"a" * (1 + 4 + 15 + 255) + b"bcdef"
    with pytest.raises(ValueError, match="before the block"):
        decompress_lz4(LZ4 + (4).to_bytes(4, "little") + b"\x10a\x05\x00")


def test_what_cannot_be_unpacked_is_left_packed() -> None:
    assert extract_vmlinux(b"no kernel at all" * 100) is None
    assert extract_vmlinux(bzimage("6.1", b"\x28\xb5\x2f\xfd zstd")) is None
    assert extract_vmlinux(bzimage("6.1", b"\x1f\x8b\x08 cut")) is None
    assert extract_vmlinux(bzimage("6.1", gzip.compress(b"\x7fELF\x02\x01 without a PVH note"))) is None
    assert not has_pvh_entry(b"\x7fELF\x02\x01" + b"\xff" * 58)
    assert read_release(b"") is None


def test_the_fetched_kernel_is_whole() -> None:
    kernel = fetched_kernel()
    assert kernel.image.name == "vmlinux"
    assert has_pvh_entry(kernel.image.read_bytes())
    packed = kernel.image.with_name("vmlinuz").read_bytes()
    assert read_release(packed) == kernel.release
    files = prepare_boot(HOME)
    assert files.kernel == kernel.image
    names = {name for name in _entries(files.initramfs.read_bytes()) if name.endswith(".ko")}
    assert {"modules/virtio_blk.ko", "modules/squashfs.ko", "modules/overlay.ko"} <= names
    assert _entries(files.initramfs.read_bytes())["init"] == agent_path().read_bytes()
    assert isinstance(resolve_modules(kernel.modules, ["virtio_blk"])[0], Module)

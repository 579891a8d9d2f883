"""Opens the backend."""

from __future__ import annotations

import os
import shutil
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from iii_core.errors import BackendUnavailable
from iii_core.sandbox.host_processes import ProcessRecords
from iii_core.sandbox.hostclient import PROCESS_FOLDER
from iii_core.sandbox.launching import open_launched
from iii_sandbox_libvirt.connection import open_connection
from iii_sandbox_libvirt.machine import LibvirtLauncher
from iii_sandbox_libvirt.places import Places, hide_kvm, lend_kvm
from iii_sandbox_libvirt.policy import EMBEDDED, SESSION, Accelerator
from iii_sandbox_libvirt.snapshots import LibvirtDriver
from iii_sandbox_libvirt.users import User

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from iii_core.records import OpenContext
    from iii_core.sandbox.port import SandboxDriver
    from iii_sandbox_libvirt.connection import Connection
    from iii_sandbox_libvirt.policy import Settings

URIS: Final = {"session": "qemu:///session", "system": "qemu:///system"}


def find_emulator(settings: Settings, context: OpenContext) -> Path:
    """QEMU. Raises `BackendUnavailable`."""
    found = shutil.which(settings.emulator, path=context.environ.get("PATH"))
    if found is None:
        raise BackendUnavailable(f"{settings.emulator} is not installed", hint="apt install qemu-system-x86")
    return Path(found)


def qemu_user(settings: Settings) -> User | None:
    """Whom QEMU runs as, if not as us. Raises `BackendUnavailable`, also for a connection that we cannot use."""
    is_root = os.geteuid() == 0
    if settings.connection == SESSION and is_root:
        raise BackendUnavailable(
            "root has no libvirt session of its own", hint="set `connection: embed`, or run as an ordinary user"
        )
    if settings.connection not in (SESSION, EMBEDDED) and not is_root:
        raise BackendUnavailable(
            f"only root can give its files to the QEMU of another daemon (connection: {settings.connection})",
            hint="set `connection: embed` or `connection: session`",
        )
    return User.named(settings.user) if is_root else None


@asynccontextmanager
async def open_driver(
    settings: Settings, context: OpenContext, accelerator: Accelerator, *, purpose: str = "vm"
) -> AsyncGenerator[SandboxDriver]:
    """Open the backend; all its sandboxes end with the block, their writable layers stay.

    Raises:
        BackendUnavailable: libvirt, QEMU or its user is missing, or libvirt refuses.
    """
    emulator = find_emulator(settings, context)
    embedded = settings.connection == EMBEDDED
    places = Places(context.runtime_dir, qemu_user(settings), binds=embedded, purpose=purpose)
    places.open()
    try:
        if embedded and places.user is not None:
            (hide_kvm if accelerator is Accelerator.TCG else lend_kvm)(places)
        async with open_connection(
            _uri(settings, places), emulator.name, places.libvirt if embedded else None
        ) as connection:
            await _sweep(connection, places)
            async with open_launched(
                lambda nursery: LibvirtLauncher(
                    settings=settings,
                    context=context,
                    emulator=emulator,
                    accelerator=accelerator,
                    connection=connection,
                    places=places,
                    records=ProcessRecords(context.runtime_dir / PROCESS_FOLDER),
                    nursery=nursery,
                ),
                LibvirtDriver,
            ) as driver:
                yield driver
    finally:
        places.close()


def _uri(settings: Settings, places: Places) -> str:
    """The connection's URI; for the embedded one, after its folder has been made."""
    if settings.connection != EMBEDDED:
        return URIS.get(settings.connection, settings.connection)
    return f"qemu:///embed?root={places.write_qemu_conf()}"


async def _sweep(connection: Connection, places: Places) -> None:
    """End what a predecessor of ours left running, and remove its files."""
    for name in await connection.names():
        if places.is_abandoned(name):
            await connection.destroy(name)
    places.clear()

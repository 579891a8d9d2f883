"""One connection to libvirt for a trio program: calls in threads, errors as ours, events as plain data."""

from __future__ import annotations

import logging
import os
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from iii_core.errors import BackendUnavailable, SandboxError
from iii_core.link.nursery import open_service_nursery
from iii_sandbox_libvirt.api import Library, load
from iii_sandbox_libvirt.eventloop import run_event_loop
from iii_sandbox_libvirt.hints import TOO_LONG, hint_for
from iii_sandbox_libvirt.zombies import THREAD, Zombies

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator
    from pathlib import Path

    from iii_sandbox_libvirt.api import Connect, Domain

T = TypeVar("T")
OPEN_TIMEOUT: Final = 10.0
DESTROY_TIMEOUT: Final = 5.0
DESTROY_INTERVAL: Final = 0.05
MAX_CALLS: Final = 16  # at a time; each has a thread
_log = logging.getLogger("iii.sandbox.libvirt")


class Connection:
    """An open connection. Methods may be called concurrently; cancelling one waits for libvirt to answer."""

    def __init__(self, library: Library, handle: Connect, zombies: Zombies) -> None:
        self.zombies = zombies
        self._library = library
        self._handle = handle
        self._threads = trio.CapacityLimiter(MAX_CALLS)
        self._token = trio.lowlevel.current_trio_token()
        self._stopped: dict[str, trio.Event] = {}
        self._subscription = handle.domainEventRegisterAny(
            None, library.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle, None
        )

    async def create(self, name: str, xml: str, *, autodestroy: bool) -> trio.Event:
        """Create and start a transient domain; the event is set when libvirt says that it has stopped.

        Raises `SandboxError` with libvirt's words; then there is no such domain. Cancelling ends a QEMU that does not
        come up: libvirt would wait for it for ever.
        """
        flags = self._library.VIR_DOMAIN_START_AUTODESTROY if autodestroy else 0
        return await self._begin(name, partial(self._handle.createXML, xml, flags))

    async def restore(self, name: str, saved: Path) -> trio.Event:
        """As `create`, from a file of libvirt's own kind, which says what domain it is: of this ``name``."""
        flags = self._library.VIR_DOMAIN_SAVE_RUNNING
        return await self._begin(name, partial(self._handle.restoreFlags, str(saved), None, flags))

    async def save(self, name: str, snapshot: str) -> None:
        """Write a suspended domain's memory to a file, as ``snapshot`` (XML) says."""
        flags = self._library.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
        await self._on(name, lambda domain: domain.snapshotCreateXML(snapshot, flags))

    async def suspend(self, name: str) -> None:
        """Let a domain stand still."""
        await self._on(name, lambda domain: domain.suspend())

    async def resume(self, name: str) -> None:
        """Let it go on."""
        await self._on(name, lambda domain: domain.resume())

    async def version(self) -> str:
        """libvirt's."""
        return str(await self._call(self._handle.getLibVersion))

    async def _on(self, name: str, act: Callable[[Domain], object]) -> None:
        domain = await self._lookup(name)
        if domain is None:
            raise SandboxError("the sandbox has ended")
        await self._call(partial(act, domain))

    async def _begin(self, name: str, act: Callable[[], object]) -> trio.Event:
        """Let a domain begin by ``act``."""
        stopped = self._stopped[name] = trio.Event()
        begun = trio.Event()
        try:
            async with open_service_nursery() as nursery:
                nursery.start_soon(self._end_if_cancelled, name, begun)
                try:
                    await self._call(act)
                finally:
                    begun.set()
        except BaseException as error:
            self._stopped.pop(name, None)
            if not isinstance(error, SandboxError):  # cancelled, and libvirt may have been quicker
                with trio.move_on_after(DESTROY_TIMEOUT, shield=True), suppress(SandboxError):
                    await self.destroy(name)
            raise
        return stopped

    async def _end_if_cancelled(self, name: str, begun: trio.Event) -> None:
        try:
            await begun.wait()
        except trio.Cancelled:
            with trio.move_on_after(DESTROY_TIMEOUT, shield=True), suppress(SandboxError):
                while not begun.is_set():
                    await self.destroy(name)
                    await trio.sleep(DESTROY_INTERVAL)  # there may be no domain yet; libvirt has no event for that
            raise

    async def destroy(self, name: str) -> None:
        """End a domain at once. Does nothing if there is none of that name."""
        domain = await self._lookup(name)
        if domain is not None:
            with suppress(_Gone):
                await self._call(domain.destroy, abandon=True)

    async def names(self) -> list[str]:
        """The names of the domains that run."""
        domains = await self._call(self._handle.listAllDomains)
        return [domain.name() for domain in domains]

    async def _lookup(self, name: str) -> Domain | None:
        try:
            return await self._call(partial(self._handle.lookupByName, name))
        except _Gone:
            return None

    async def _call(self, act: Callable[[], T], *, abandon: bool = False) -> T:
        """``abandon``: whoever cancels this does not wait for libvirt's answer."""
        async with open_service_nursery() as nursery:
            nursery.start_soon(self.zombies.reap)
            outcome = await trio.to_thread.run_sync(
                partial(self._attempt, act), limiter=self._threads, abandon_on_cancel=abandon, thread_name=THREAD
            )
        if isinstance(outcome, SandboxError):
            raise outcome
        return outcome

    def _attempt(self, act: Callable[[], T]) -> T | SandboxError:
        """An error is returned: raised while the caller is cancelled, it would come out instead of the cancellation."""
        try:
            return act()
        except self._library.libvirtError as error:
            return translated(self._library, error)

    def _lifecycle(self, _: Connect, domain: Domain, event: int, detail: int, opaque: object) -> None:
        """Called by libvirt's thread."""
        if event == self._library.VIR_DOMAIN_EVENT_STOPPED:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._note_stopped, domain.name())

    def _note_stopped(self, name: str) -> None:
        stopped = self._stopped.pop(name, None)
        if stopped is not None:
            stopped.set()

    async def close(self) -> None:
        """Close; libvirt forgets nothing of an embedded connection's domains, so they must be gone by now."""
        with suppress(SandboxError):
            await self._call(partial(self._handle.domainEventDeregisterAny, self._subscription))
        with suppress(SandboxError):
            await self._call(self._handle.close)


class _Gone(SandboxError):
    """There is no such domain."""


def translated(library: Library, error: Exception) -> SandboxError:
    """libvirt's error as one of ours."""
    code = getattr(error, "get_error_code", lambda: -1)()
    message = getattr(error, "get_error_message", lambda: str(error))() or str(error)
    if code == library.VIR_ERR_NO_DOMAIN:
        return _Gone(f"libvirt: {message}")
    kind = BackendUnavailable if TOO_LONG in message else SandboxError  # the first will be so the next time too
    return kind(f"libvirt: {message}", hint=hint_for(message), details={"backend": "libvirt", "libvirt_code": code})


@asynccontextmanager
async def open_connection(uri: str, emulator: str, cache: Path | None = None) -> AsyncGenerator[Connection]:
    """Connect to libvirt.

    Args:
        uri: https://libvirt.org/uri.html
        emulator: the name of the program that runs its guests.
        cache: where libvirt, if it comes to run in this process, keeps what is meant for the user's ``~/.cache``.

    Raises:
        BackendUnavailable: the binding or the driver is missing, or libvirt refuses.
    """
    try:
        library = load()
    except ImportError as error:
        raise BackendUnavailable(
            f"libvirt's Python binding cannot be loaded: {error}",
            hint="apt install libvirt0 libvirt-daemon-driver-qemu, then reinstall iii-sandbox-libvirt",
        ) from error
    library.registerErrorHandler(_drop, None)  # errors come as exceptions; it would print them on stderr too
    run_event_loop()
    handle = await _open(library, uri, cache)
    connection = Connection(library, handle, Zombies(emulator))
    try:
        yield connection
    finally:
        with trio.move_on_after(OPEN_TIMEOUT, shield=True):
            await connection.close()


async def _open(library: Library, uri: str, cache: Path | None) -> Connect:
    try:
        with trio.fail_after(OPEN_TIMEOUT), _cache_in(cache):
            return await trio.to_thread.run_sync(library.open, uri, abandon_on_cancel=True)
    except trio.TooSlowError as error:
        raise BackendUnavailable(
            f"libvirt at {uri} did not answer within {OPEN_TIMEOUT:g} s",
            hint="restart libvirtd, or set `connection: embed`",
        ) from error
    except library.libvirtError as error:
        message = translated(library, error).message
        raise BackendUnavailable(f"{message} ({uri})", hint=hint_for(message)) from error


@contextmanager
def _cache_in(folder: Path | None) -> Generator[None]:
    """libvirt's library asks the environment once (GLib, ``g_get_user_cache_dir``)."""
    before = os.environ.get("XDG_CACHE_HOME")
    if folder is not None:
        os.environ["XDG_CACHE_HOME"] = str(folder)
    try:
        yield
    finally:
        if folder is not None:
            del os.environ["XDG_CACHE_HOME"]
        if before is not None:
            os.environ["XDG_CACHE_HOME"] = before


def _drop(*_: object) -> None:
    """libvirt's error handler."""

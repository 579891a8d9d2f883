"""Where things are: the project's files, its state, its sockets, and the record of its running engine (design §7)."""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from iii_core.errors import ConfigIoError, EngineAlreadyRunning, EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SOCKET_PATH_LIMIT: Final = 107  # sun_path holds 108 bytes with the closing NUL (unix(7))
_LONGEST_SOCKET_NAME: Final = 32
_CONTROL_SOCKET: Final = "control.sock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A folder with a config.yaml. Building one touches no disk beyond resolving paths.

    Attributes:
        config_path: absolute path of the configuration file, which need not exist.
        home: ``$III_HOME``: things that all projects of a user share.
        environ: the environment to look things up in.
        default_workers: engine workers that run although config.yaml, which may then be missing, does not name them.
    """

    config_path: Path
    home: Path
    environ: Mapping[str, str] = field(repr=False)
    default_workers: tuple[str, ...] | None = None

    @property
    def root(self) -> Path:
        """The folder that holds the configuration file."""
        return self.config_path.parent

    @property
    def state_dir(self) -> Path:
        """``.iii/``: state of this project that lasts."""
        return self.root / ".iii"

    @property
    def lock_path(self) -> Path:
        """``iii.lock``, the pins of registry workers; not the lock of the project (`iii_core.project.guard`)."""
        return self.root / "iii.lock"

    @property
    def record_path(self) -> Path:
        """The record of the running engine."""
        return self.state_dir / "engine.json"

    def logs_dir(self, name: str) -> Path:
        """The log folder of a worker. ``name`` must be valid (`check_name`)."""
        return self.state_dir / "logs" / name


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecord:
    """What a running engine says about itself.

    Attributes:
        pid: its process id.
        start_time: its start in clock ticks since boot (field 22 of ``/proc/PID/stat``), which tells it from a later
            process of the same id.
        control: absolute path of its control socket.
        port: the port its trusted listener is bound to.
        secure: whether that listener speaks TLS.
    """

    pid: int
    start_time: int
    control: str
    port: int
    secure: bool = False

    def alive(self) -> bool:
        """Whether that very process still runs."""
        return process_start_time(self.pid) == self.start_time


def locate_project(
    config: str | None = None, *, environ: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Project:
    """The project: ``config`` (``-c``), else ``$III_CONFIG_PATH``, else ``./config.yaml``; nothing need exist.

    Raises `ConfigIoError` where the current folder is gone or the path cannot be resolved.
    """
    environ = os.environ if environ is None else environ
    try:
        cwd = Path.cwd() if cwd is None else cwd
        chosen = cwd / Path(config or environ.get("III_CONFIG_PATH") or "config.yaml").expanduser()
        # The folder is resolved, so that every way to it names one project; the file may be a link to a shared one.
        config_path = chosen.parent.resolve() / chosen.name
        home = cwd / user_home(environ)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigIoError(f"cannot find the project: {error}") from error
    return Project(config_path=config_path, home=home, environ=environ)


def user_home(environ: Mapping[str, str]) -> Path:
    """``$III_HOME``, else ``~/.iii``. Raises RuntimeError where the user has no home."""
    return Path(environ.get("III_HOME") or "~/.iii").expanduser()


def runtime_dir(project: Project) -> Path:
    """Create and give the project's private folder for sockets (0700, ours), short enough for socket names ≤ 32 bytes.

    ``$XDG_RUNTIME_DIR/iii/<hash>``, else ``/run/user/UID/iii/<hash>``, else ``/tmp/iii-UID/<hash>``. A place that
    belongs to somebody else or that others may enter is never used. Raises `EngineError` if no place will do.
    """
    import hashlib  # commands that only look for the engine do without

    digest = hashlib.sha256(os.fsencode(project.root)).hexdigest()[:12]
    refused: list[str] = []
    for base in _runtime_bases(project.environ):
        folder = base / digest
        if len(os.fsencode(folder)) + 1 + _LONGEST_SOCKET_NAME > SOCKET_PATH_LIMIT:
            refused.append(f"{folder} is too long")
            continue
        try:
            make_private(base)
            make_private(folder)
        except OSError as error:
            refused.append(f"{error.filename or base}: {error.strerror}")
            continue
        return folder
    raise EngineError(f"no private folder for sockets: {'; '.join(refused)}", hint="set XDG_RUNTIME_DIR")


def control_socket(project: Project) -> Path:
    """Where an engine of this project listens for commands; creates the folder."""
    return runtime_dir(project) / _CONTROL_SOCKET


def remove_runtime_dir(project: Project) -> None:
    """Remove the folder of `runtime_dir` and the folders in it, as far as they are empty."""
    try:
        folder = runtime_dir(project)
    except EngineError:
        return  # then nothing was made there
    for place, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            Path(place).rmdir()


def make_private(folder: Path) -> None:
    """Make sure ``folder`` is a real folder of ours with mode 0700; its parent must exist.

    Raises OSError: PermissionError where it belongs to somebody else, NotADirectoryError for a link or a file.
    """
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(20, "not a folder", str(folder)) from None
        if found.st_uid != os.geteuid():
            raise PermissionError(13, "belongs to somebody else", str(folder)) from None
        if stat.S_IMODE(found.st_mode) != 0o700:
            folder.chmod(0o700)


def make_state_dir(project: Project) -> Path:
    """Create ``.iii/`` (0700 where it is new) and give it. Raises `ConfigIoError`."""
    folder = project.state_dir
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        from iii_core.project.files import hint_for

        raise ConfigIoError(
            f"cannot create {folder}: {error.strerror}", hint=hint_for(error), details={"path": str(folder)}
        ) from error
    return folder


def process_start_time(pid: int) -> int | None:
    """Start of a process in clock ticks since boot, or None if there is none (proc(5)); a zombie counts as none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    fields = text[text.rfind(")") + 2 :].split()  # the command name before ')' may hold anything
    return None if fields[0] in ("Z", "X", "x") else int(fields[19])


def write_record(project: Project, *, control: Path, port: int, secure: bool = False) -> EngineRecord:
    """Record this process as the project's engine; what is on record already stays. Raises `ConfigIoError`."""
    from iii_core.project.files import write_atomic

    pid = os.getpid()
    start_time = process_start_time(pid) or 0
    record = EngineRecord(pid=pid, start_time=start_time, control=str(control), port=port, secure=secure)
    if read_record(project) == record:  # so that a full disk is no trouble for who changes something else
        return record
    make_state_dir(project)
    write_atomic(project.record_path, json.dumps(asdict(record)).encode(), mode=0o600)
    return record


def read_record(project: Project) -> EngineRecord | None:
    """The record of the project's engine if that engine is alive; anything unreadable or stale is None."""
    try:
        data = json.loads(project.record_path.read_bytes())
        numbers = [data[name] for name in ("pid", "start_time", "port")]
        if not all(type(number) is int and number > 0 for number in numbers) or type(data["control"]) is not str:
            return None
        record = EngineRecord(
            pid=numbers[0],
            start_time=numbers[1],
            control=data["control"],
            port=numbers[2],
            secure=data.get("secure") is True,
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return record if record.alive() else None


def refuse_second_engine(project: Project) -> None:
    """Raises `EngineAlreadyRunning` where the project's folder has an engine."""
    record = read_record(project)
    if record is not None:
        raise engine_runs(project, record)


def engine_runs(project: Project, record: EngineRecord | None) -> EngineAlreadyRunning:
    """The error for a project that has an engine; ``record`` is what is known of it."""
    return EngineAlreadyRunning(
        f"an engine runs this project already{f' (pid {record.pid})' if record else ''}",
        hint="stop it first, or use 'iii worker …' to talk to it",
        details={"pid": record.pid if record else None, "project": str(project.root)},
    )


def remove_record(project: Project) -> None:
    """Forget this process as the project's engine; another engine's record is left alone."""
    record = read_record(project)
    if record is not None and record.pid == os.getpid():
        project.record_path.unlink(missing_ok=True)


def _runtime_bases(environ: Mapping[str, str]) -> Iterator[Path]:
    uid = os.geteuid()
    for place in (environ.get("XDG_RUNTIME_DIR"), f"/run/user/{uid}"):
        if place and _is_ours(Path(place)):
            yield Path(place) / "iii"
    yield last_runtime_base()


def last_runtime_base() -> Path:
    """Where sockets of this user can be if nothing better is short enough: use it with `make_private`."""
    return Path(f"/tmp/iii-{os.geteuid()}")  # noqa: S108 - make_private refuses it if somebody else made it


def _is_ours(place: Path) -> bool:
    try:
        found = place.lstat()
    except OSError:
        return False
    return place.is_absolute() and stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()

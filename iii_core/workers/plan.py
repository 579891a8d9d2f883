"""What is run for a managed worker: environment, argv, directory, user, limits. Pure."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Final

from iii_core.errors import ImageUserUnknown
from iii_core.images.port import ImageUser
from iii_core.project.env import URL_VARIABLES, patch_url_argument, requested_url
from iii_core.sandbox.port import Limits
from iii_core.workers.validity import check_environment, check_url, check_worker_limits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iii_core.images.port import Image
    from iii_core.sandbox.port import Isolation
    from iii_core.workers.spec import WorkerSpec

DEFAULT_LIMITS: Final = Limits(cpus=2, memory_mib=2048, pids=4096)  # spec worker-cli §0.3; pids is ours
DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPlan:
    """What the agent is asked to run, as whom, and within which limits. ``notes`` are for ``status``."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    cwd: str
    uid: int
    gid: int
    limits: Limits
    stop_signal: int
    url: str
    groups: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def as_single_user(self) -> WorkerPlan:
        """The plan for a sandbox that has no user id but 0 (design §8)."""
        if self.uid == self.gid == 0:
            return replace(self, groups=())
        note = f"user {self.uid}:{self.gid} is not there: it runs as the only user of its sandbox, 0:0"
        return replace(self, uid=0, gid=0, groups=(), notes=(*self.notes, note))


def plan_worker(spec: WorkerSpec, image: Image, *, engine_port: int, isolation: Isolation) -> WorkerPlan:
    """Decide what to run.

    The entry itself is checked already (`iii_core.workers.validity.check_spec`).

    Environment, lowest first: the account's ``HOME``, image ``ENV``, the entry's flattened ``config``, then what iii
    sets. The URL is what config, or else the image asks for under ``III_ENGINE_URL`` or ``III_URL``, else the engine
    through the tunnel; both variables carry it (spec worker-cli §4 RULE).

    Raises:
        ConfigError: together with what the image asks for it can never work: URL, environment, limits.
        ImageUserUnknown: the image's ``USER`` is a name that the image doesn't know.
    """
    user = ImageUser(uid=spec.user.uid, gid=spec.user.gid) if spec.user else _user(image)
    home = user.home or ("/" if user.uid else "/root")
    base = {"PATH": DEFAULT_PATH, "HOME": home, **dict(image.config.env), **spec.env}
    asked = requested_url(spec.env) or requested_url(base)
    url = asked or f"ws://127.0.0.1:{engine_port}"
    check_url(spec.name, url, engine_port)
    check_environment(spec.name, base)
    limits = _limits(spec, image)
    check_worker_limits(spec, limits)
    argv = (*image.config.entrypoint, *image.config.cmd) or ("/bin/sh",)
    return WorkerPlan(
        argv=patch_url_argument(argv, url, append=asked is not None),
        env={
            **base,
            **dict.fromkeys(URL_VARIABLES, url),
            "III_WORKER_NAME": spec.name,
            "III_ISOLATION": isolation.value,
        },
        cwd=image.config.working_dir or "/",
        uid=user.uid,
        gid=user.gid,
        groups=user.groups,
        limits=limits,
        stop_signal=_stop_signal(image.config.stop_signal),
        url=url,
    )


def _limits(spec: WorkerSpec, image: Image) -> Limits:
    """By precedence (design §8): the entry, the image's hints, the project, the defaults."""
    hints = Limits(cpus=image.hints.cpus, memory_mib=image.hints.memory_mib) if image.hints else Limits()
    return first_limits(spec.limits, hints, spec.fallback, DEFAULT_LIMITS)


def first_limits(*candidates: Limits) -> Limits:
    """Of each limit the first that is given."""
    return Limits(
        **{
            name: next((value for limits in candidates if (value := getattr(limits, name)) is not None), None)
            for name in (member.name for member in fields(Limits))
        }
    )


def _user(image: Image) -> ImageUser:
    """Whom ``USER`` means. Without an answer of the image's own files, numbers are taken as they are."""
    if image.user is not None:
        return image.user
    name, _, group = image.config.user.partition(":")
    uid, gid = (text if text not in ("", "root") else "0" for text in (name, group))
    if not (uid.isdigit() and gid.isdigit()):
        raise ImageUserUnknown(
            f"{image.reference} is to run as {image.config.user!r}, whom its /etc/passwd and /etc/group don't know",
            hint="USER must name an account of the image, or be a number: tell the image's author",
            details={"user": image.config.user},
        )
    return ImageUser(uid=int(uid), gid=int(gid))


def _stop_signal(name: str) -> int:
    """The number of ``STOPSIGNAL`` (``SIGTERM``, ``TERM`` or ``15``); SIGTERM where it says nothing sensible."""
    if name.isdigit() and 0 < int(name) < signal.NSIG:
        return int(name)
    found = getattr(signal, name if name.startswith("SIG") else f"SIG{name}", signal.SIGTERM)
    return found.value if isinstance(found, signal.Signals) else signal.SIGTERM.value

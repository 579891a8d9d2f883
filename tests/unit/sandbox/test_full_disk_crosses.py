"""A backend that finds a full disk is not a broken one."""

from __future__ import annotations

import errno
import os

from iii_core.errors import SandboxError
from iii_core.sandbox.host_wire import error_from, failure_of


def test_a_full_disk_is_no_internal_error() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/run/x")
    error = error_from(failure_of(full))
    assert type(error) is SandboxError
    assert error.message == "the sandbox backend cannot write /run/x: No space left on device"
    assert error.hint == "free some disk space"
    assert failure_of(OSError(errno.EDQUOT, "over quota")).hint == "free some disk space"


def test_other_errors_are() -> None:
    failure = failure_of(OSError(errno.EIO, os.strerror(errno.EIO)))
    assert failure.message.startswith("internal error of the sandbox backend: OSError")

"""The ``iii`` script: what must be in place before the program is imported, which takes longer than most commands.

Ctrl-C in that time must end it as quietly as at any other. So this module imports next to nothing.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Generator

INTERRUPTED = 130  # 128 + SIGINT


def main() -> NoReturn:
    """Entry point of the script."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started us wants it ignored
        signal.signal(signal.SIGINT, _leave)
    from iii_core.cli.program import run

    sys.exit(run(sys.argv[1:]))


@contextmanager
def interrupts() -> Generator[None]:
    """In the block Ctrl-C is a `KeyboardInterrupt`, as there is something to clean up; around it, it just ends us."""
    before = signal.getsignal(signal.SIGINT)
    try:
        if before is _leave:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _leave(_number: int, _frame: object) -> NoReturn:
    os._exit(INTERRUPTED)  # no traceback of an import, and no trouble while the interpreter ends

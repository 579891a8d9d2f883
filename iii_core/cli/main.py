"""The ``iii`` script: what must be in place before the program is imported, which takes longer than most commands.

Ctrl-C in that time must end it as quietly as at any other. So this module imports next to nothing.
"""

from __future__ import annotations

import atexit
import os
import sys
from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

INTERRUPTED = 130  # 128 + SIGINT


def main() -> NoReturn:
    """Entry point of the script."""
    signal = import_module("_signal")  # the part in C; the one in Python is slow to import, and made for reading
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else whoever started us wants it ignored
        signal.signal(signal.SIGINT, leave)
        # While the interpreter ends it would undo this, and the next Ctrl-C would take the place of the exit code.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    from iii_core.cli.program import run

    sys.exit(run(sys.argv[1:]))


def leave(_number: int, _frame: object) -> NoReturn:
    """What Ctrl-C does while there is nothing to clean up."""
    os._exit(INTERRUPTED)  # no traceback of an import, and no trouble while the interpreter ends

"""Asking before something is destroyed."""

from __future__ import annotations

import sys

from iii_core.cli.output import is_terminal, say_styled
from iii_core.errors import Cancelled, ConsentRequired


def confirm(question: str, *, default: bool = False) -> bool:
    """Ask on stderr, read one line of stdin. Only ``y`` and ``yes`` mean yes, Enter means ``default``; EOF means no."""
    say_styled(f"{question} [{'Y/n' if default else 'y/N'}] ")
    try:
        answer = input().strip().lower()
    except EOFError:
        return False
    return answer in ("y", "yes") if answer else default


def require_consent(question: str, *, assume_yes: bool) -> None:
    """Return if the user agrees.

    Raises `ConsentRequired` where nobody can be asked and ``-y`` is missing, `Cancelled` for a no.
    """
    if assume_yes:
        return
    if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        raise ConsentRequired(
            f"needs a yes, and nobody can be asked here: {question}", hint="pass -y to agree beforehand"
        )
    if not confirm(question):
        raise Cancelled("nothing was done")

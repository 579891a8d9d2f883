"""Where the guest agent is, as a program for this machine's architecture."""

from __future__ import annotations

from pathlib import Path

from iii_core.errors import BackendUnavailable


def agent_path() -> Path:
    """The static agent program (``docs/protocol/agent.md``, "Starting the agent").

    Raises `BackendUnavailable` if this installation was made without it.
    """
    path = Path(__file__).parent / "bin" / "agent"
    if not path.is_file():
        raise BackendUnavailable(
            f"the guest agent is missing at {path}",
            hint="reinstall iii-sandbox-guest; from a work tree: tools/setup.sh base",
        )
    return path

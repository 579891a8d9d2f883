"""User ids that sandboxes have on this machine where the engine runs as root: no account is, or may become, one.

Both ranges lie between systemd's container range and its "foreign" range (systemd, UIDS-GIDS.md), and far above what
useradd(8) hands out as subordinate ids. Group ids likewise.
"""

from __future__ import annotations

from typing import Final

SANDBOX_IDS: Final = 0x70000000
"""First of the 65536 that users inside sandboxes are, in order: owners of what they leave outside."""
MACHINE_IDS: Final = 0x70010000
"""First of the `MACHINE_ID_COUNT` that processes which run a virtual machine are, one each."""
MACHINE_ID_COUNT: Final = 65536

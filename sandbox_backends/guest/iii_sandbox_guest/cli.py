"""``iii sandbox setup``: what virtual machines need of this machine."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import typer

from iii_core.cli.output import say, success

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def setup() -> None:
    """Fetch the kernel that sandboxes in virtual machines boot: Debian's, about 30 MB. No root needed."""
    from iii_core.cli.running import run_async
    from iii_core.project.locate import user_home
    from iii_sandbox_guest.fetch import fetch_kernel

    home = Path.cwd() / user_home(os.environ)
    kernel = run_async(partial(fetch_kernel, home, progress=say))
    success(f"kernel {kernel.release} in {kernel.image.parent}")

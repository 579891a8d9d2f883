"""A row of ``iii doctor``: what virtual machines of Cloud Hypervisor need of this machine.

Never ``failed``, and no warning where it is not installed: it is used only where a worker asks for it by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from iii_core.errors import BackendUnavailable
from iii_core.records import CheckResult
from iii_sandbox_cloud_hypervisor.driver import find_program
from iii_sandbox_cloud_hypervisor.policy import Settings
from iii_sandbox_cloud_hypervisor.probe import KVM, check_kvm, find_version

if TYPE_CHECKING:
    from pathlib import Path

    from iii_core.records import OpenContext

NEVER_AUTOMATIC: Final = "experimental, and used only where `backend: cloud-hypervisor` asks for it"


async def check_cloud_hypervisor(context: OpenContext, kvm: Path = KVM) -> CheckResult:
    """The program, and the device that it cannot do without; that a guest boots is for the backend's trial to say."""
    try:
        program = find_program(Settings(), context)
    except BackendUnavailable as error:
        return CheckResult(status="ok", message=f"not installed ({NEVER_AUTOMATIC})", hint=error.hint)
    try:
        version = await find_version(program)
        check_kvm(kvm)
    except BackendUnavailable as error:
        return CheckResult(status="warning", message=f"{error.message} ({NEVER_AUTOMATIC})", hint=error.hint)
    return CheckResult(status="ok", message=f"{program}, {version} ({NEVER_AUTOMATIC})")

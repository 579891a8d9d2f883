"""The settings of the backend; what limits mean for machines is tested where it is kept, in the guest's package."""

from __future__ import annotations

import msgspec
import pytest
from iii_sandbox_libvirt import policy


@pytest.mark.parametrize("wrong", [{"acelerator": "kvm"}, {"accelerator": "xen"}, {"connection": 1}, {"kernel": 5}])
def test_settings_that_make_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, policy.Settings)

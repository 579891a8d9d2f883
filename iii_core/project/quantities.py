"""CPU and memory quantities, as config.yaml, worker manifests and image hints write them (spec worker-cli §2.4)."""

from __future__ import annotations

import math
import re
from typing import Final

_MIB: Final = 1024 * 1024
MAX_BITS: Final = 128
"""Of any number that is read at all; far more than there is of anything, and few enough to compute with and to show."""
_SUFFIXES: Final = {
    "": 1,
    "k": 1000,
    "M": 1000**2,
    "G": 1000**3,
    "T": 1000**4,
    "Ki": 1024,
    "Mi": 1024**2,
    "Gi": 1024**3,
    "Ti": 1024**4,
}
_MEMORY = re.compile(r"([0-9]{1,18})(k|M|G|T|Ki|Mi|Gi|Ti)?\Z")
_MILLI_CPUS = re.compile(r"([0-9]{1,9})m\Z")
_CPUS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?\Z")


def parse_memory_mib(value: object) -> int:
    """MiB of a memory size: a number is MiB; text is bytes with an optional suffix (``512Mi``, ``2Gi``, ``1048576Ki``).

    Rounds up, so that nobody gets less than asked for. Raises ValueError below 1 byte or for anything else.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        mib = value
    elif isinstance(value, str) and (match := _MEMORY.match(value)):
        mib = -(-int(match[1]) * _SUFFIXES[match[2] or ""] // _MIB)
    else:
        raise ValueError("expected MiB as a whole number, or text such as 512Mi or 2Gi")
    if mib < 1:
        raise ValueError("expected more than nothing")
    if mib.bit_length() > MAX_BITS:
        raise ValueError("that is too much")
    return mib


def parse_cpus(value: object) -> float:
    """CPU cores: a number, or text such as ``0.5`` or ``500m``. Raises ValueError for zero or anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        cpus = float(value) if not isinstance(value, int) or value.bit_length() <= MAX_BITS else math.inf
    elif isinstance(value, str) and (match := _MILLI_CPUS.match(value)):
        cpus = int(match[1]) / 1000
    elif isinstance(value, str) and _CPUS.match(value):
        cpus = float(value)
    else:
        raise ValueError("expected a number of cores, such as 2, 0.5 or 500m")
    if not (math.isfinite(cpus) and cpus > 0):
        raise ValueError("expected more than nothing")
    return cpus

"""What the driver and the keeper send each other: JSON datagrams with descriptors beside them (``unix(7)``).

The socket is ``SOCK_SEQPACKET``: message borders are kept, and an empty message is the end.
"""

from __future__ import annotations

import array
import json
import socket
from collections.abc import Iterable, Sequence
from typing import Any

MAX_MESSAGE = 128 * 1024
MAX_DESCRIPTORS = 8
ANCILLARY_SIZE = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)


def encode(message: dict[str, Any], descriptors: Sequence[int]) -> tuple[list[bytes], list[tuple[int, int, Any]]]:
    """The first two arguments of ``sendmsg``."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    return [json.dumps(message).encode()], rights


def decode(data: bytes, ancillary: Iterable[tuple[int, int, bytes]]) -> tuple[dict[str, Any], list[int]]:
    """What ``recvmsg`` gave: a message, and descriptors that the caller owns from now on."""
    descriptors = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(payload)
    return json.loads(data), list(descriptors)

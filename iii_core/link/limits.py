"""How much of anything one end of a link allows, and how long it waits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkLimits:
    """Sizes in bytes, times in seconds.

    Attributes:
        max_message: largest message (or payload of an open) that this side takes.
        max_streams: how many streams the peer may have open here at once (acceptor), or this side opens (initiator; the
            peer's own limit counts too).
        data_window, message_window: what the peer may send on a stream before the application has read any of it.
        hello_timeout: how long the peer may take to answer.
        send_timeout: a peer that takes no bytes for so long is gone.
        close_timeout: how long leaving `open_mux` waits for what is queued to be sent.
        ping_interval: how often to ask whether the peer is alive; None for never.
        dead_after: the link is given up when nothing has arrived for so long; None for never.
    """

    max_message: int = 1 << 20
    max_streams: int = 256
    data_window: int = 128 << 10
    message_window: int = 16 << 10
    hello_timeout: float = 10.0
    send_timeout: float = 30.0
    close_timeout: float = 1.0
    ping_interval: float | None = None
    dead_after: float | None = None

"""The control socket: how the ``iii`` command talks to the engine of its project.

A Unix socket in the project's runtime folder, owner only, speaking the framed link (``docs/protocol/link.md``). A
request is a stream whose OPEN payload is JSON ``{"op": …, "args": {…}}``; its answers are JSON messages: any number
of ``{"progress": …}``, then one ``{"result": …}`` or ``{"error": {"code", "message", "hint", "details"}}``.
"""

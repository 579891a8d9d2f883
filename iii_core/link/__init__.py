"""The framed link (``docs/protocol/link.md``): many streams over one byte stream.

- `iii_core.link.frames`: the codec, without I/O
- `iii_core.link.mux`: both ends for trio
- `iii_core.link.blocking`: a client for commands that must start fast, without trio
"""

"""The wire protocol between workers and the engine: messages, their encoding, limits and error codes."""

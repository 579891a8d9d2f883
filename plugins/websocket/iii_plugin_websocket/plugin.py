"""iii-plugin-websocket: the hook implementations of this distribution."""

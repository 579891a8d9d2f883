"""iii-sandbox-bubblewrap: the hook implementations of this distribution."""

"""iii-sandbox-guest: the hook implementations of this distribution."""

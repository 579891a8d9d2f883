"""The published SDKs, unmodified, as callers and workers of our engine."""

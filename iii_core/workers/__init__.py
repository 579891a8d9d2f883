"""Managed workers: the ones that iii itself installs, runs in sandboxes, watches and restarts."""

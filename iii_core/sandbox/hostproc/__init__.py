"""The program of the sandbox host process: ``python -m iii_core.sandbox.hostproc FD``."""

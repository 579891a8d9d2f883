"""iii for Python: an engine that routes calls between workers, and the toolkit around it."""

from iii_core.hookspecs import hookimpl as hookimpl

__version__ = "0.1.0"

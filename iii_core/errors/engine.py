"""Errors of the engine and of plugins."""

from __future__ import annotations

from iii_core.errors.base import IIIError


class EngineError(IIIError):
    """The engine cannot do its work."""

    default_code = "W200"


class EngineNotRunning(EngineError):
    """The command needs the project's engine, and none answers."""

    default_code = "W201"


class EngineAlreadyRunning(EngineError):
    """This project has an engine already."""

    default_code = "W202"


class AddressInUse(EngineError):
    """A listener's address is taken."""

    default_code = "W203"


class ControlError(EngineError):
    """The control socket spoke something unexpected."""

    default_code = "W204"


class TlsError(EngineError):
    """A certificate or key that cannot be used, or a peer whose certificate is not to be trusted."""

    default_code = "W205"


class PluginError(IIIError):
    """A plugin breaks the rules of the host."""

    default_code = "W210"


class PluginCollision(PluginError):
    """Two plugins declare the same name."""

    default_code = "W211"


class PluginMissing(PluginError):
    """No installed plugin provides what is asked for."""

    default_code = "W212"

"""Error codes that the engine itself puts on the wire (spec protocol §1.8); a callee's own codes pass through."""

from __future__ import annotations

from typing import Final

FUNCTION_NOT_FOUND: Final = "function_not_found"
INVOCATION_STOPPED: Final = "invocation_stopped"
INVOCATION_FAILED: Final = "invocation_failed"
INVOCATION_ERROR: Final = "invocation_error"
CHANNEL_SEND_FAILED: Final = "channel_send_failed"
ENQUEUE_ERROR: Final = "enqueue_error"
FORBIDDEN: Final = "FORBIDDEN"
AUTH_ERROR: Final = "AUTH_ERROR"
FUNCTION_NAMESPACE_CONFLICT: Final = "FUNCTION_NAMESPACE_CONFLICT"
"""The one code with which SDKs survive a ``registrationrejected``; every other one stops them for good."""
TRIGGER_REGISTRATION_FAILED: Final = "trigger_registration_failed"
UNREGISTER_FAILED: Final = "unregister_failed"
NOT_FOUND: Final = "NOT_FOUND"
INVALID_ARGUMENTS: Final = "INVALID_ARGUMENTS"
DESERIALIZATION_ERROR: Final = "deserialization_error"
SERIALIZATION_ERROR: Final = "serialization_error"
LIMIT_EXCEEDED: Final = "limit_exceeded"
"""A cap of this engine is reached: calls in flight, or registrations of one worker."""
TIMEOUT: Final = "TIMEOUT"
"""Never on the wire: a caller inside the engine stopped waiting."""

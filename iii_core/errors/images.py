"""Errors of images and registries."""

from __future__ import annotations

from iii_core.errors.base import IIIError


class ImageError(IIIError):
    """An image that cannot be had or used."""

    default_code = "W141"


class ImageNotFound(ImageError):
    """The registry does not know the reference."""

    default_code = "W220"


class RegistryUnreachable(ImageError):
    """The registry does not answer."""

    default_code = "W221"


class RegistryAuthError(ImageError):
    """The registry refuses the credentials, or wants some."""

    default_code = "W222"


class NoMatchingPlatform(ImageError):
    """The image has no variant for this machine."""

    default_code = "W223"


class DigestMismatch(ImageError):
    """Bytes that are not what their digest says."""

    default_code = "W224"


class ImageUnsafe(ImageError):
    """An image whose layers try something they must not."""

    default_code = "W225"


class StorageFull(ImageError):
    """The image store ran out of disk space."""

    default_code = "W226"


class ImageUserUnknown(ImageError):
    """An image that is to run as an account that it does not have."""

    default_code = "W227"

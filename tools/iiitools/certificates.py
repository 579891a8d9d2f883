"""A certificate authority for the time of a test, made by the ``openssl`` program."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Certificate:
    """Two PEM files."""

    cert: Path
    key: Path


class Authority:
    """An authority that nobody trusts by default.

    Args:
        folder: an existing folder for its files.
        name: the common name of its own certificate.
    """

    def __init__(self, folder: Path, name: str = "throwaway CA") -> None:
        self._folder = folder
        self.own = Certificate(folder / "ca.pem", folder / "ca.key")
        self._request(self.own, name, "-x509", "-addext", "basicConstraints=critical,CA:TRUE")

    @property
    def path(self) -> Path:
        """The PEM file to trust."""
        return self.own.cert

    def issue(self, *names: str, days: int = 2) -> Certificate:
        """A certificate for these subject alternative names, such as ``DNS:localhost``; ``days`` < 0: expired."""
        stem = self._folder / f"issued-{len(list(self._folder.glob('issued-*.pem')))}"
        made, request = Certificate(stem.with_suffix(".pem"), stem.with_suffix(".key")), stem.with_suffix(".csr")
        self._request(Certificate(request, made.key), "listener")
        extensions = stem.with_suffix(".ext")
        extensions.write_text(f"subjectAltName={','.join(names)}\nextendedKeyUsage=serverAuth\n")
        what: list[str | Path] = ["-req", "-in", request, "-out", made.cert, "-days", str(days), "-extfile", extensions]
        _openssl("x509", *what, "-CA", self.own.cert, "-CAkey", self.own.key, "-CAcreateserial")
        return made

    def _request(self, files: Certificate, name: str, *options: str) -> None:
        kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-batch", *options]
        _openssl("req", *kind, "-subj", f"/CN={name}", "-keyout", files.key, "-out", files.cert)


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise RuntimeError(f"openssl {arguments[0]} failed: {done.stderr}")

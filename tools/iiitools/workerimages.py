"""Images of the example workers, as OCI layouts: the same as their Dockerfiles make, from Debian's packages.

>>> build_math_worker(Path("build/images"), tag="math-worker")
'sha256:…'
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iiitools.debianimage import LayerWriter, base, build_layer
from iiitools.ocilayout import write_layout
from iiitools.worktree import ROOT

EXAMPLES = ROOT / "examples"
INSTALL_SECONDS = 600
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PYTHON_SDK = "0.25.0"
NPM = "10.9.9"

PYTHON_PACKAGES = (
    "busybox-static",
    "libbz2-1.0",
    "libc6",
    "libcrypt1",
    "libexpat1",
    "libffi8",
    "libgcc-s1",
    "liblzma5",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
    "libsqlite3-0",
    "libssl3",
    "libuuid1",
    "python3.11-minimal",
    "zlib1g",
)
NODE_PACKAGES = (
    "busybox-static",
    "libbrotli1",
    "libc-ares2",
    "libc6",
    "libgcc-s1",
    "libicu72",
    "libnghttp2-14",
    "libnode108",
    "libssl3",
    "libstdc++6",
    "libuv1",
    "node-acorn",
    "node-busboy",
    "node-cjs-module-lexer",
    "node-undici",
    "node-xtend",
    "nodejs",
    "zlib1g",
)


def build_math_worker(layout: Path, *, tag: str, env: Mapping[str, str] | None = None) -> str:
    """Write the image of ``examples/math-worker`` to an OCI layout; returns the manifest's digest."""
    source = EXAMPLES / "math-worker"

    def application(layer: LayerWriter) -> None:
        layer.file("app/worker.py", (source / "worker.py").read_bytes())
        layer.file("iii/worker.yaml", (source / "iii.worker.yaml").read_bytes())

    key = "".join((source / name).read_text() for name in ("worker.py", "iii.worker.yaml"))
    return write_layout(
        layout,
        tag=tag,
        layers=[python_layer(), python_sdk_layer(), build_layer("math-worker", (), application, key=key)],
        config=config(["python3", "worker.py"], {"OTEL_ENABLED": "false", **(env or {})}),
        architecture=architecture(),
    )


def build_hello_worker(layout: Path, *, tag: str) -> str:
    """Write the image of ``examples/hello-worker`` (TypeScript, run by tsx) to an OCI layout; returns its digest."""
    source = EXAMPLES / "hello-worker"

    def application(layer: LayerWriter) -> None:
        layer.file("app/package.json", (source / "package.json").read_bytes())
        layer.tree(source / "src", "app/src")

    key = "".join((source / name).read_text() for name in ("package.json", "src/index.ts"))
    return write_layout(
        layout,
        tag=tag,
        layers=[node_layer(), node_modules_layer(source), build_layer("hello-worker", (), application, key=key)],
        config=config(["npx", "tsx", "src/index.ts"], {"FOO": "bar"}),
        architecture=architecture(),
    )


def config(entrypoint: list[str], env: Mapping[str, str]) -> dict[str, Any]:
    """The image's config object."""
    variables = [f"{name}={value}" for name, value in env.items()]
    return {"Entrypoint": entrypoint, "Env": [PATH, *variables], "WorkingDir": "/app"}


def architecture() -> str:
    """This machine's architecture, as Debian and Go call it."""
    return subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()


def python_layer() -> Path:
    """Debian's Python with busybox."""

    def fill(layer: LayerWriter) -> None:
        base(layer)
        layer.link("usr/bin/python3", "python3.11")
        layer.link("usr/bin/python", "python3.11")

    return build_layer("python", PYTHON_PACKAGES, fill)


def python_sdk_layer(version: str = PYTHON_SDK) -> Path:
    """The published iii-sdk for Python with what it depends on."""

    def fill(layer: LayerWriter) -> None:
        with tempfile.TemporaryDirectory() as folder:
            command = [str(ROOT / "tools" / "uv"), "pip", "install", "--quiet", "--only-binary", ":all:"]
            command += ["--python", sys.executable, "--python-version", "3.11", "--target", folder]
            run([*command, f"iii-sdk=={version}"], ROOT)
            layer.tree(Path(folder), "usr/local/lib/python3.11/dist-packages")

    return build_layer("python-sdk", (), fill, key=version)


def node_layer() -> Path:
    """Debian's Node.js with busybox, and npm for ``npx``."""

    def fill(layer: LayerWriter) -> None:
        base(layer)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "package.json").write_text(json.dumps({"private": True, "dependencies": {"npm": NPM}}))
            npm_install(Path(folder))
            layer.tree(Path(folder, "node_modules", "npm"), "usr/local/lib/node_modules/npm")
        for command in ("npm", "npx"):
            layer.link(f"usr/local/bin/{command}", f"../lib/node_modules/npm/bin/{command}-cli.js")

    return build_layer("node", NODE_PACKAGES, fill, key=NPM)


def node_modules_layer(source: Path) -> Path:
    """``npm install`` of a folder's package.json, as /app/node_modules."""
    manifest = (source / "package.json").read_text()

    def fill(layer: LayerWriter) -> None:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "package.json").write_text(manifest)
            npm_install(Path(folder))
            layer.tree(Path(folder, "node_modules"), "app/node_modules")

    return build_layer("node-modules", (), fill, key=manifest)


def npm_install(folder: Path) -> None:
    """Install what the folder's package.json asks for."""
    run(["npm", "install", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"], folder)


def run(command: list[str], folder: Path) -> None:
    """Run an installer.

    Raises:
        RuntimeError: it failed; the text holds what it said.
    """
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=INSTALL_SECONDS
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} failed:\n{done.stderr}")


def main() -> None:
    """Build both images below ``build/images`` and say what they are."""
    layout = ROOT / "build" / "images"
    for name, build in (("math-worker", build_math_worker), ("hello-worker", build_hello_worker)):
        print(f"oci:{layout}:{name}  {build(layout, tag=name)}")


if __name__ == "__main__":
    main()

#!/bin/sh
# Set up a fresh machine: `tools/setup.sh base|type|demo|test`. Quick when there is nothing to do.
#
# Each step is a function that first looks whether it is done: system packages by asking dpkg, the rest by a stamp under
# build/stamps/ that holds a hash of everything the step was made from.
set -eu

UV_VERSION=0.13.9   # bootstrapped where no uv is on PATH
NODE_MAJOR=18       # what the SDKs for Node.js ask for

cd "$(dirname "$0")/.."
STAMPS=build/stamps
PACKAGES=tools/debian-packages.txt
APT_LOG=build/apt.log

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# --- stamps ---------------------------------------------------------------------------------------------------------

# hash_of PATH…: one hash over the names and contents of these files and folders
hash_of() {
    find "$@" -type f ! -path '*/__pycache__/*' -print0 2>/dev/null | sort -z | xargs -0 -r sha256sum | sha256sum | cut -d' ' -f1
}
is_fresh() { [ -f "$STAMPS/$1" ] && [ "$(cat "$STAMPS/$1")" = "$2" ]; }
mark_fresh() { mkdir -p "$STAMPS" && printf '%s' "$2" >"$STAMPS/$1"; }

# --- system packages ------------------------------------------------------------------------------------------------

packages_tagged() { awk -v tag="$1" '!/^#/ { for (i = 2; i <= NF; i++) if ($i == tag) print $1 }' "$PACKAGES"; }

node_is_good() {
    have node && have npm && [ "$(node -p 'process.versions.node.split(".")[0]' 2>/dev/null || echo 0)" -ge "$NODE_MAJOR" ]
}

uv_is_at_hand() { have uv || [ -x .tools/uv/bin/uv ]; }

wanted_packages() {
    packages_tagged "$1"
    uv_is_at_hand || packages_tagged uv
    case "$1" in type | test) node_is_good || packages_tagged node ;; esac
}

missing_packages() {
    for package in $(wanted_packages "$1"); do
        case "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" in
            installed) ;;
            *) printf '%s ' "$package" ;;
        esac
    done
}

# apt_get COMMAND…: run it with its output in the log; where it fails, show the end of that
apt_get() {
    "$@" >>"$APT_LOG" 2>&1 </dev/null && return
    tail -n 20 "$APT_LOG" >&2
    die "apt-get failed (the whole log: $APT_LOG)"
}

install_packages() {
    if ! have dpkg-query; then
        say "not a Debian machine: make sure that these are installed: $(wanted_packages "$1" | tr '\n' ' ')"
        return
    fi
    missing=$(missing_packages "$1")
    [ -n "$missing" ] || return 0
    if [ "$(id -u)" = 0 ]; then
        root=
    elif have sudo && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
        root=sudo
    else
        die "system packages are missing; as root run: apt-get install --no-install-recommends -y $missing"
    fi
    mkdir -p build
    : >"$APT_LOG"
    say "fetching the lists of system packages (apt-get update)"
    # shellcheck disable=SC2086  # word splitting is meant, here and below
    apt_get $root apt-get update
    say "installing system packages; this may take some minutes: $missing"
    # shellcheck disable=SC2086
    apt_get $root env DEBIAN_FRONTEND=noninteractive apt-get install --no-install-recommends -y $missing
}

# udev gives everybody access to /dev/fuse; a container without udev may have kept it for root.
open_fuse() {
    if [ "$(id -u)" = 0 ] && [ -c /dev/fuse ] && [ "$(stat -c %a /dev/fuse)" != 666 ]; then
        say "making /dev/fuse accessible to ordinary users, as udev does (chmod 0666)"
        chmod 0666 /dev/fuse || say "could not; tests that mount images as an ordinary user will be skipped"
    fi
}

# --- Python ---------------------------------------------------------------------------------------------------------

find_uv() {
    if have uv; then
        UV=uv
        return
    fi
    UV=$PWD/.tools/uv/bin/uv
    [ -x "$UV" ] && return
    say "installing uv $UV_VERSION into .tools/"
    python3 -m venv .tools/uv || die "python3 -m venv failed (Debian has it in python3-venv)"
    .tools/uv/bin/pip install --quiet --disable-pip-version-check "uv==$UV_VERSION" </dev/null
}

python_key() {
    hash_of pyproject.toml tools/setup.sh plugins/*/pyproject.toml registries/*/pyproject.toml sandbox_backends/*/pyproject.toml \
        sandbox_backends/*/hatch_build.py sandbox_backends/*/agent
}

install_python() {
    key=$(python_key)
    if is_fresh python "$key" && [ -x .venv/bin/python ]; then return; fi
    find_uv
    say "installing Python packages into .venv"
    UV_PYTHON_DOWNLOADS=never "$UV" sync --all-packages --quiet </dev/null || die "uv sync failed"
    mark_fresh python "$key"
}

# --- SDKs that the tests run against --------------------------------------------------------------------------------

install_sdks() {
    key=$(hash_of tools/iiitools/sdks.py tests/integration/sdk/node tests/integration/sdk/python)
    if is_fresh sdks "$key" && [ -d build/sdks ]; then return; fi
    say "installing the published SDKs that the tests use"
    PYTHONPATH=tools .venv/bin/python -m iiitools.sdks </dev/null || die "installing the SDKs failed"
    mark_fresh sdks "$key"
}

# --- what each purpose needs ----------------------------------------------------------------------------------------

case "${1:-}" in
    base) install_packages base; install_python ;;
    type) install_packages type; install_python ;;  # pyright is a program for Node.js
    demo) install_packages demo; open_fuse; install_python ;;
    test) install_packages test; open_fuse; install_python; install_sdks ;;
    *) die "usage: tools/setup.sh base|type|demo|test" ;;
esac

#!/bin/sh
# flake8-async over the files that have anything asynchronous: it takes long for each, and has nothing to say of others.
set -eu

cd "$(dirname "$0")/.."
folders="iii_core plugins registries sandbox_backends tests tools benchmarks examples"
# shellcheck disable=SC2086  # word splitting is meant
grep --recursive --files-with-matches --include='*.py' --null --extended-regexp '\b(async|await|trio|anyio)\b' conftest.py $folders |
    sort --zero-terminated | xargs --null "${FLAKE8:-.venv/bin/flake8}"

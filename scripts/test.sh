#!/usr/bin/env bash
# Usage: [TEST_WORKERS=2] bash scripts/test.sh [pytest arguments]
# On a fresh machine: sets up .venv, then linters, layers, types and the whole test suite.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup_venv.sh
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
PYTHONPATH=src "$repository/.venv/bin/lint-imports" --no-cache # the layers, see pyproject.toml
"$PYTHON" -m mypy
# Two files of tests at a time, in the order of their names, which puts long ones first: much of a test is waiting for
# another process, or for one thread of a compiler.
exec "$PYTHON" -m pytest -n "${TEST_WORKERS:-2}" --dist loadfile --no-loadscope-reorder "$@"

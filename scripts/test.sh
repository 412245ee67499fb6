#!/usr/bin/env bash
# Usage: bash scripts/test.sh [pytest arguments]
# On a fresh machine: sets up .venv, then lint, format check and the whole test suite.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup_venv.sh
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
exec "$PYTHON" -m pytest "$@"

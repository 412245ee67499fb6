#!/usr/bin/env bash
# Usage: bash scripts/ascend_acceptance.sh [DATA] [--quick] [--device_target auto|Ascend|CPU] [--config YAML] [--output FOLDER]
# Checks and measures this machine, from the driver to a training on all cards, and stops at the first failure.
# Writes acceptance/acceptance.json and names the fastest settings; docs/acceptance.md says what to send back.
# PYTHON names the interpreter that has MindSpore (default: python).
set -euo pipefail
repository="$(cd "$(dirname "$0")/.." && pwd)"
source "$repository/scripts/run_checks.sh"
check_python
check_not_launched
exec "$PYTHON" "$repository/tools/ascend_acceptance" "$@"

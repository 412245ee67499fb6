#!/usr/bin/env bash
# Usage: source scripts/run_checks.sh
# Checks that the run_*.sh scripts share; each ends the script with one line of explanation and exit code 2.

fail() {
    echo "error: $*" >&2
    exit 2
}

check_config() {
    [ -f "$1" ] || fail "config: $1 does not exist; the published models are in configs/"
}

check_data() {
    case "$1" in
        *://*) return ;; # object storage: with --run_openi True, copied by the job
    esac
    [ -d "$1" ] || fail "data: $1 is not a folder; it must hold train/ and val/, a folder per class in each"
}

check_python() {
    PYTHON="${PYTHON:-python}"
    command -v "$PYTHON" >/dev/null 2>&1 || fail "interpreter: $PYTHON not found; set PYTHON, or activate the environment"
    "$PYTHON" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("mindspore") is None)' ||
        fail "MindSpore is not installed for $(command -v "$PYTHON"); set PYTHON, or: pip install -r requirements.txt"
}

check_number() {
    case "$2" in
        '' | *[!0-9]*) fail "$1: '$2' is not a number" ;;
    esac
    [ "$2" -ge "$3" ] || fail "$1: $2 must be at least $3"
}

# The job must start its own workers: with variables of another launcher around, it would take itself for one of theirs.
check_not_launched() {
    [ -z "${MS_ROLE:-}" ] || fail "MS_ROLE is set: a launcher is at work already; run train.py itself, or unset it"
    [ -z "${RANK_TABLE_FILE:-}" ] ||
        fail "RANK_TABLE_FILE is set: unset it (no rank table is needed here), or run train.py once per device yourself"
}

# Add --NAME VALUE to the array `place`, unless the user's further arguments bring a --NAME of their own.
add_default() { # NAME VALUE [further arguments]
    local name="$1" value="$2" argument
    shift 2
    for argument in "$@"; do
        case "$argument" in "--$name" | "--$name="*) return ;; esac
    done
    place+=("--$name" "$value")
}

#!/usr/bin/env bash
# Usage: source scripts/setup_venv.sh
# Makes .venv in the repository with a Python of 3.9 to 3.12 and installs requirements-dev.txt, once; sets PYTHON to its
# interpreter. Another run reuses it unless a requirements file has changed. FOCAL_PYTHON names the Python to start from.

repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

find_python() {
    local candidate candidates
    candidates=(python3.11 python3.10 python3.12 python3.9 python3 python)
    [ -z "${FOCAL_PYTHON:-}" ] || candidates=("$FOCAL_PYTHON") # this one or none
    for candidate in "${candidates[@]}"; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1; then
            command -v "$candidate"
            return 0
        fi
    done
    if [ -n "${FOCAL_PYTHON:-}" ]; then
        echo "error: FOCAL_PYTHON: $FOCAL_PYTHON is not a Python of version 3.9 to 3.12" >&2
    else
        echo "error: no Python of version 3.9 to 3.12 found; install one, or name it: FOCAL_PYTHON=/path/to/python $0" >&2
    fi
    return 1
}

PYTHON="$repository/.venv/bin/python"
stamp="$repository/.venv/requirements.stamp"
wanted="$(cat "$repository/requirements.txt" "$repository/requirements-dev.txt" | cksum)"
if [ ! -x "$PYTHON" ] || [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    base_python="$(find_python)" || exit 1
    echo "setting up .venv with $("$base_python" --version) (once; downloads about 400 MB)"
    # What is there may be of a Python that has gone; venv alone does not replace its links.
    "$base_python" -m venv $([ -x "$PYTHON" ] || echo --clear) "$repository/.venv" || {
        echo "error: 'python -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2
        exit 1
    }
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$repository/requirements-dev.txt" || {
        echo "error: installing requirements-dev.txt failed, see above" >&2
        exit 1
    }
    echo "$wanted" >"$stamp"
fi
export PYTHON
export PATH="$repository/.venv/bin:$PATH"

#!/usr/bin/env bash
# Usage: bash scripts/test_versions.sh [VERSION ...]
# Runs a quick set of tests on each MindSpore version (default: 2.7.0 2.7.2 2.8.0 2.9.0 2.10.0), each in a virtual
# environment of its own under .venv-versions/ (made once; about 1.5 GB each). FOCAL_PYTHON names the Python to start
# from (3.10 or 3.11: those that all versions have wheels for). Prints a table; the exit code is 1 if any version failed.
set -euo pipefail
cd "$(dirname "$0")/.."
versions=("$@")
[ ${#versions[@]} -gt 0 ] || versions=(2.7.0 2.7.2 2.8.0 2.9.0 2.10.0)

# What a job needs: configuration, network against the authors' figures, training trajectory, checkpoints, storage, and
# train.py itself on one and on two processes.
quick_tests=(
    tests/unit/distributed
    tests/unit/checkpoint/test_files.py
    tests/unit/models/test_convolution.py
    tests/unit/models/test_cpu_forms.py
    tests/unit/models/test_ascend_forms.py
    tests/numerics/test_train_trajectory.py
    "tests/numerics/test_model_parity.py::test_logits_and_stages[nano_v1]"
    "tests/numerics/test_model_parity.py::test_logits_and_stages[nano_v2_useconv]"
    "tests/numerics/test_model_parity.py::test_gradient_norms_in_pynative_mode[nano_v1_useconv]"
    "tests/numerics/test_model_parity.py::test_gradient_norms_in_graph_mode[nano_v2_useconv]"
    tests/integration/test_launcher.py::test_two_workers_start_work_together_and_end
    tests/integration/test_distributed.py::test_two_processes_equal_one_with_twice_the_batch
)

base_python="${FOCAL_PYTHON:-}"
if [ -z "$base_python" ]; then
    for candidate in python3.11 python3.10 python3 python; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 11))' >/dev/null 2>&1; then
            base_python="$candidate"
            break
        fi
    done
fi
[ -n "$base_python" ] || {
    echo "error: no Python of version 3.10 or 3.11 found; name one: FOCAL_PYTHON=/path/to/python bash $0" >&2
    exit 2
}

prepare() { # version -> path of the interpreter with that MindSpore
    local venv=".venv-versions/$1" wanted
    wanted="$(cat requirements.txt requirements-dev.txt | cksum)"
    if [ "$(cat "$venv/complete" 2>/dev/null)" != "$wanted" ]; then
        # In $(...) bash forgets `set -e`.
        rm -rf "$venv"
        "$base_python" -m venv "$venv" >&2 || return 1
        sed "s/^mindspore==.*/mindspore==$1/" requirements.txt >"$venv/requirements.txt"
        sed '/^ruff/d' requirements-dev.txt >"$venv/requirements-dev.txt"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$venv/requirements-dev.txt" >&2 ||
            return 1
        echo "$wanted" >"$venv/complete"
    fi
    echo "$venv/bin/python"
}

failed=0
report=""
for version in "${versions[@]}"; do
    echo "== MindSpore $version"
    start=$SECONDS
    if ! python="$(prepare "$version")"; then
        failed=1
        report+="$version  FAILED  could not be installed, see above"$'\n'
        continue
    fi
    if "$python" -m pytest -q -m "not slow" "${quick_tests[@]}" 2>&1 | tee ".venv-versions/$version.log" | tail -n 15; then
        result=passed
    else
        result=FAILED
        failed=1
    fi
    summary="$(grep -E '(passed|failed|error)' ".venv-versions/$version.log" | tail -n 1 | tr -d '=')" || true
    report+="$version  $result  $summary  ($((SECONDS - start)) s in all)"$'\n'
done
printf '\n%s' "$report"
exit $failed

#!/usr/bin/env bash
# Evaluate a checkpoint, on one device or on several. See usage below, or run without arguments.
set -euo pipefail

usage() {
    cat >&2 <<'TEXT'
usage: bash scripts/run_eval.sh CONFIG CHECKPOINT DATA [--key value ...]
  CONFIG      YAML file the checkpoint was trained with
  CHECKPOINT  e.g. OUT/best/... or OUT/checkpoints/last.ckpt
  DATA        folder with val/
  Further arguments go to eval.py as they are, e.g. --use_ema True for the EMA weights, --json FILE.
variables:
  DEVICES        devices, default 1; every image is counted once with any number
  DEVICE_TARGET  auto (default: an Ascend, else the CPU), Ascend, CPU or GPU
  DEVICE_ID      device to use where DEVICES is 1, default 0
  PYTHON         interpreter, default: python
example:
  bash scripts/run_eval.sh configs/focalv2_small_useconv_patch4_window7_224.yaml ./out/checkpoints/last.ckpt /data/imagenet
TEXT
    exit 2
}

[ $# -ge 3 ] || usage
here="$(cd "$(dirname "$0")" && pwd)"
source "$here/run_checks.sh"
devices="${DEVICES:-1}"
check_number DEVICES "$devices" 1
check_config "$1"
case "$2" in
    *://*) ;;
    *) [ -f "$2" ] || fail "checkpoint: $2 does not exist" ;;
esac
check_data "$3"
[ "$devices" -eq 1 ] || check_not_launched
check_python
config="$1" checkpoint="$2" data="$3"
shift 3
place=()
add_default device_target "${DEVICE_TARGET:-auto}" "$@"
add_default device_id "${DEVICE_ID:-0}" "$@"
exec "$PYTHON" "$here/../eval.py" --config "$config" --pretrained "$checkpoint" --data_url "$data" \
    --device_num "$devices" --node_num 1 --node_rank 0 ${place[@]+"${place[@]}"} "$@"

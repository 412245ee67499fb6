#!/usr/bin/env bash
# Train on one device. See usage below, or run without arguments.
set -euo pipefail

usage() {
    cat >&2 <<'TEXT'
usage: bash scripts/run_standalone_train.sh CONFIG DATA OUT [--key value ...]
  CONFIG  YAML file, e.g. configs/focalv2_small_useconv_patch4_window7_224.yaml
  DATA    folder with train/ and val/
  OUT     folder for results (made if it is not there)
  Further arguments go to train.py as they are; `python train.py --help` lists them.
variables:
  DEVICE_TARGET  auto (default: an Ascend, else the CPU), Ascend, CPU or GPU
  DEVICE_ID      device to use, default 0
  PYTHON         interpreter, default: python
examples:
  bash scripts/run_standalone_train.sh configs/focalv2_tiny_useconv_patch4_window7_224.yaml /data/imagenet ./out
  DEVICE_TARGET=CPU bash scripts/run_standalone_train.sh configs/quickstart_digits.yaml ./digits ./out --epochs 2
TEXT
    exit 2
}

[ $# -ge 3 ] || usage
here="$(cd "$(dirname "$0")" && pwd)"
source "$here/run_checks.sh"
check_config "$1"
check_data "$2"
check_python
config="$1" data="$2" out="$3"
shift 3
place=()
add_default device_target "${DEVICE_TARGET:-auto}" "$@"
add_default device_id "${DEVICE_ID:-0}" "$@"
exec "$PYTHON" "$here/../train.py" --config "$config" --data_url "$data" --train_url "$out" \
    --device_num 1 --node_num 1 --node_rank 0 ${place[@]+"${place[@]}"} "$@"

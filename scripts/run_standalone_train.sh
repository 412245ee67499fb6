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
  DEVICE_TARGET  auto (an Ascend, else the CPU), Ascend, CPU or GPU; default: what CONFIG says, or auto
  DEVICE_ID      device to use, default: what CONFIG says, or 0
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
exec "$PYTHON" "$here/../train.py" --config "$config" --data_url "$data" --train_url "$out" \
    --device_num 1 --node_num 1 --node_rank 0 \
    ${DEVICE_TARGET:+--device_target "$DEVICE_TARGET"} ${DEVICE_ID:+--device_id "$DEVICE_ID"} "$@"

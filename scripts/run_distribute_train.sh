#!/usr/bin/env bash
# Data-parallel training on several devices, of one server or of several. See usage below, or run without arguments.
set -euo pipefail

usage() {
    cat >&2 <<'TEXT'
usage, one server:
  bash scripts/run_distribute_train.sh DEVICES CONFIG DATA OUT [--key value ...]
usage, several servers (the same command on each, but for NODE_RANK):
  NODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 bash scripts/run_distribute_train.sh DEVICES CONFIG DATA OUT [--key value ...]
  DEVICES  devices of all servers together
  CONFIG   YAML file, e.g. configs/focalv2_small_useconv_patch4_window7_224.yaml
  DATA     folder with train/ and val/, on every server
  OUT      folder for results; logs of all ranks in OUT/log
  Further arguments go to train.py as they are; `python train.py --help` lists them.
variables:
  NODES          servers, default 1
  NODE_RANK      number of this server, 0 to NODES - 1; must be given with several servers
  MASTER_ADDR    address of server 0 as the others see it; must be given with several servers
  MASTER_PORT    port of the scheduler on server 0, default 8118 with several servers, a free one with one
  DEVICE_TARGET  auto (default: an Ascend, else the CPU), Ascend, CPU or GPU
  PYTHON         interpreter, default: python
examples:
  bash scripts/run_distribute_train.sh 8 configs/focalv2_small_useconv_patch4_window7_224.yaml /data/imagenet ./out
  DEVICE_TARGET=CPU bash scripts/run_distribute_train.sh 2 configs/quickstart_digits.yaml ./digits ./out --epochs 2
TEXT
    exit 2
}

[ $# -ge 4 ] || usage
here="$(cd "$(dirname "$0")" && pwd)"
source "$here/run_checks.sh"
nodes="${NODES:-1}"
check_number DEVICES "$1" 2
check_number NODES "$nodes" 1
check_config "$2"
check_data "$3"
check_not_launched
check_python
devices="$1" config="$2" data="$3" out="$4"
shift 4
[ $((devices % nodes)) -eq 0 ] || fail "DEVICES: $devices (of all servers together) is not a multiple of NODES $nodes"
place=()
if [ "$nodes" -gt 1 ]; then
    check_number NODE_RANK "${NODE_RANK:-}" 0
    [ "$NODE_RANK" -lt "$nodes" ] || fail "NODE_RANK: $NODE_RANK must be less than NODES $nodes"
    [ -n "${MASTER_ADDR:-}" ] || fail "MASTER_ADDR is not set: with several servers, the address of server 0"
    place=(--node_num "$nodes" --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-8118}")
elif [ -n "${MASTER_PORT:-}" ]; then
    place=(--master_port "$MASTER_PORT")
fi
add_default device_target "${DEVICE_TARGET:-auto}" "$@"
exec "$PYTHON" "$here/../train.py" --config "$config" --data_url "$data" --train_url "$out" \
    --device_num "$devices" ${place[@]+"${place[@]}"} "$@"

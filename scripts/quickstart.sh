#!/usr/bin/env bash
# Usage: bash scripts/quickstart.sh [FOLDER] [train.py flags]
# On a machine with Python 3.9 to 3.12: sets up .venv, writes real handwritten digits as images, trains a small Focal
# Transformer on them, evaluates the best checkpoint, exports it to MINDIR and classifies a few images with that.
# Everything goes to FOLDER (default: quickstart in the repository). A second run reuses .venv, digits and training.
set -euo pipefail
repository="$(cd "$(dirname "$0")/.." && pwd)"
folder="$repository/quickstart"
if [ $# -gt 0 ] && [[ "$1" != --* ]]; then
    mkdir -p "$1"
    folder="$(cd "$1" && pwd)"
    shift
fi
cd "$repository"
source scripts/setup_venv.sh
mkdir -p "$folder"
started=$SECONDS
common=(--config configs/quickstart_digits.yaml --data_url "$folder/digits" --train_url "$folder/output")
best="$folder/output/best/best.ckpt"

echo "== 1/5 digits as an image folder"
"$PYTHON" scripts/make_digits.py "$folder/digits"

echo "== 2/5 training"
"$PYTHON" train.py "${common[@]}" --resume auto "$@"

echo "== 3/5 evaluation of the best checkpoint: raw and EMA weights"
"$PYTHON" eval.py "${common[@]}" --pretrained "$best" --json "$folder/eval.json"
"$PYTHON" eval.py "${common[@]}" --pretrained "$best" --use_ema True --json "$folder/eval_ema.json"

echo "== 4/5 export to MINDIR, compared with the network"
"$PYTHON" export.py "${common[@]}" --pretrained "$best" --file_format MINDIR --file_name "$folder/digits.mindir" |
    tee "$folder/export.log"

echo "== 5/5 a few held-out images, classified with the exported network"
images=()
for digit in 0 3 5 8; do
    of_digit=("$folder/digits/val/$digit"/*.png)
    images+=("${of_digit[0]}")
done
"$PYTHON" scripts/predict.py "${common[@]}" --pretrained "$folder/digits.mindir" "${images[@]}"

echo
"$PYTHON" scripts/quickstart_summary.py "$folder" "$((SECONDS - started))"

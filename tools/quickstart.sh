#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From a fresh machine to a trained Focal Mask R-CNN: set-up, data, training, evaluation, pictures.
#
#   bash tools/quickstart.sh [SEED]
#
# A second run reuses what is there, an interrupted one goes on where it stopped.
#   CONFIG      another Mask R-CNN, e.g. configs/quickstart/swin_nano_maskrcnn.py
#   WORK_DIRS   where the run goes (default: work_dirs/quickstart)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seed=${1:-0}
config=${CONFIG:-configs/quickstart/focal_nano_maskrcnn.py}
work_dir=${WORK_DIRS:-work_dirs/quickstart}/$(basename "$config" .py)_seed$seed
predictions=$work_dir/predictions

bash tools/setup_env.sh
export PYTHON=$PWD/.venv/bin/python  # for dist_train.sh too
"$PYTHON" tools/data/make_digit_scenes.py --out data/digit_scenes

if [[ -f $work_dir/results.md ]]; then
    echo "already trained: $work_dir (remove it to train again)"
else
    bash tools/dist_train.sh "$config" 1 --work-dir "$work_dir" --resume --cfg-options \
        "randomness.seed=$seed" "val_evaluator.outfile_prefix='$predictions'"
fi
"$PYTHON" tools/analysis/report_run.py "$work_dir" --predictions "$predictions.segm.json"
"$PYTHON" tools/predict.py "$work_dir" data/digit_scenes/val/000004.png --score-thr 0.5 --out "$work_dir/predicted"
echo "predicted one scene: $work_dir/predicted/vis"

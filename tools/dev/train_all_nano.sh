#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Train every method small on digit scenes, one after the other, and compare with docs/nano_results.md.
#
#   bash tools/dev/train_all_nano.sh [METHOD ...]    # e.g. atss htcpp; all of them take over an hour
#
# Finished runs are skipped, and interrupted runs are resumed. Some start from
# the backbone of maskrcnn, which must be trained before. Exits with 1 if a metric is below its limit in
# tools/dev/nano_thresholds.json.
#   WORK_DIRS   where the runs, their table and their curves go (default: work_dirs/nano)
#   OPTIONS     settings to override, e.g. "train_cfg.max_iters=100 randomness.seed=1"
source "$(dirname "${BASH_SOURCE[0]}")/../dist_common.sh"

root=${WORK_DIRS:-work_dirs/nano}
methods=(retinanet maskrcnn maskrcnn_jitter cascade atss reppointsv2 sparsercnn htcpp dyhead upernet cls)
if [[ $# -gt 0 ]]; then methods=("$@"); fi

[[ -f data/digit_scenes/meta.json ]] || "$PYTHON" "$TOOLS/data/make_digit_scenes.py"
work_dirs=()
for method in "${methods[@]}"; do
    work_dir=$root/focal_nano_$method
    work_dirs+=("$work_dir")
    if [[ -f $work_dir/results.md ]]; then
        echo "already trained: $work_dir (remove it to train again)"
        continue
    fi
    config=$ROOT/configs/quickstart/focal_nano_$method.py
    read -ra settings <<<"${OPTIONS:-}"
    if [[ $method =~ ^(sparsercnn|dyhead|upernet)$ ]]; then
        pretrained=$root/focal_nano_maskrcnn
        if [[ ! -f $pretrained/results.md ]]; then
            echo "error: $method starts from the backbone of maskrcnn, but $pretrained holds no finished run; train it first" >&2
            exit 1
        fi
        init_cfg=model.backbone.init_cfg
        settings+=("$init_cfg.type=FocalPretrained" "$init_cfg.checkpoint='$(<"$pretrained/last_checkpoint")'")
    fi
    if [[ ${#settings[@]} -gt 0 ]]; then settings=(--cfg-options "${settings[@]}"); fi
    bash "$TOOLS/dist_train.sh" "$config" 1 --work-dir "$work_dir" --resume "${settings[@]}"
    if [[ $method == *_jitter ]]; then # trained for several scales, so tested at several too
        bash "$TOOLS/dist_test.sh" "$config" "$(<"$work_dir/last_checkpoint")" 1 \
            --work-dir "$work_dir" --tta "${settings[@]}"
    fi
    "$PYTHON" "$TOOLS/analysis/report_run.py" "$work_dir"
done
"$PYTHON" "$TOOLS/analysis/report_run.py" "${work_dirs[@]}" --out "$root"
"$PYTHON" "$TOOLS/dev/check_nano_results.py" "${work_dirs[@]}"

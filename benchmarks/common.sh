# SPDX-License-Identifier: Apache-2.0
# Sourced by cpu.sh and gpu.sh, which set DEVICE, with their arguments: defines what they share.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ -z ${PYTHON:-} ]]; then
    bash tools/setup_env.sh
    PYTHON=.venv/bin/python
fi
default=benchmarks/results
RESULTS=${RESULTS:-$default}
PREFIX=${DEVICE/cuda/gpu}
options=("$@")
archs=(--archs tiny small base large --baselines swin_tiny swin_small swin_base swin_large)
picture=docs/images/${PREFIX}_growth.png
[[ $RESULTS == "$default" ]] || picture=$RESULTS/${PREFIX}_growth.png

# hours of work would end at the last file
if [[ " $* " != *" --force "* ]] &&
    { compgen -G "$RESULTS/${PREFIX}_*.csv" >/dev/null || [[ -e $picture ]]; }; then
    echo "$RESULTS has files ${PREFIX}_*.csv, or there is $picture:" \
        "set RESULTS to another folder, or pass --force" >&2
    exit 1
fi
data=() # the configs' own: COCO

make_data() {
    "$PYTHON" tools/data/make_digit_scenes.py --out data/digit_scenes
    if [[ ! -d data/coco ]]; then
        echo "data/coco does not exist: detectors are measured on digit scenes" >&2
        data=(--data-root data/digit_scenes)
    fi
}

measure() { # measure NAME SCRIPT ARGUMENTS: writes NAME.csv
    local name=$1 script=$2
    shift 2
    echo "== $name"
    "$PYTHON" "benchmarks/$script" "$@" --device "$DEVICE" --csv "$RESULTS/$name.csv" "${options[@]}"
}

publish() { # only what is to be committed
    if [[ $RESULTS == "$default" ]]; then
        "$PYTHON" benchmarks/report.py
    fi
}

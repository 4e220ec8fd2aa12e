#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Measure all that docs/performance.md says about GPUs, and write it there. Nothing else should run
# on the GPU. Arguments go to every measurement:
#
#   bash benchmarks/gpu.sh               fails if there are results
#   bash benchmarks/gpu.sh --force
#   bash benchmarks/gpu.sh --quick       in five minutes, with PyTorch, Triton, timm and mmengine only:
#                                        Focal-T beside Swin-T, what it should reach, and kernels
#   bash benchmarks/gpu.sh --quick --rehearse --results FOLDER       every part of it, on a CPU
#
#   RESULTS   where the files go (default: benchmarks/results)
#   PYTHON    interpreter (default: that of .venv, which is made if needed)
set -euo pipefail
if [[ ${1:-} == --quick ]]; then
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    if [[ -z ${PYTHON:-} ]]; then
        PYTHON=python3
        [[ ! -x .venv/bin/python ]] || PYTHON=.venv/bin/python
    fi
    export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
    exec "$PYTHON" benchmarks/quick.py "${@:2}"
fi
DEVICE=cuda
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu.sh needs a GPU: PyTorch finds no CUDA device here (benchmarks/cpu.sh needs none)" >&2
    exit 1
fi
baselines=(--baselines swin_tiny)
if "$PYTHON" -c 'import timm' 2>/dev/null; then
    baselines=(--baselines timm_swin_tiny swin_tiny) # ratios are to the first one
else
    echo "timm is not installed: its Swin, which has fused attention, is left out" >&2
fi
make_data
sizes=(--sizes 224x224x128 448x448x32 800x1344x2 --dtypes bf16 --memory "${baselines[@]}")
measure gpu_backbone backbone.py "${sizes[@]}" --impls triton sdpa reference
measure gpu_compile backbone.py "${sizes[@]}" --impls triton sdpa --compile --cuda-graphs
measure gpu_archs backbone.py --sizes 224x224x128 --dtypes bf16 --memory "${archs[@]}"
measure gpu_growth backbone.py --growth --focal-windows 15 13 9 7 --dtypes bf16 --memory \
    --impls triton sdpa --plot "$picture"
measure gpu_attention attention.py --sizes 224x224x128 448x448x32 800x1344x2 --dtypes bf16 \
    --impls triton sdpa reference
measure gpu_detector detector.py configs/detection/focal_t_maskrcnn_1x.py \
    --baseline configs/detection/ablations/swin_t_maskrcnn_1x.py --memory "${data[@]}"
measure gpu_loader detector.py configs/detection/focal_t_maskrcnn_3x.py --loader-only "${data[@]}"
publish

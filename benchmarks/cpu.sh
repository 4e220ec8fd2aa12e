#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Measure all that docs/performance.md says about CPUs, and write it there. Nothing else should run
# on the machine. Arguments go to every measurement:
#
#   bash benchmarks/cpu.sh                         fails if there are results
#   bash benchmarks/cpu.sh --force --threads 16
#
#   RESULTS   where the files go (default: benchmarks/results)
#   OLDER     commit that is measured beside this tree
#   PYTHON    interpreter (default: that of .venv, which is made if needed)
set -euo pipefail
DEVICE=cpu
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
options=(--max-spread 0.1 "${options[@]}") # on a busy machine ratios say nothing

older=${OLDER:-ce20759} # the last commit before version 0.2.0

make_data
sizes=(--sizes 224x224x8 784x1344x1 --memory)
measure cpu_backbone backbone.py "${sizes[@]}" --impls chunked
measure cpu_commits commits.py "$older"
# the linear layers of both by the same library
MMFOCAL_CPU_LINEAR=mkl measure cpu_backbone_mkl backbone.py "${sizes[@]}" --impls chunked
GLIBC_TUNABLES=glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592 \
    measure cpu_backbone_malloc backbone.py "${sizes[@]}" --impls chunked
measure cpu_impls backbone.py "${sizes[@]}" --impls chunked sdpa reference
# auto: chunked as it is, sdpa where it is compiled
measure cpu_compile backbone.py --sizes 224x224x8 784x1344x1 --modes infer --impls auto --compile
measure cpu_archs backbone.py --sizes 224x224x8 --memory "${archs[@]}"
measure cpu_bf16 backbone.py "${sizes[@]}" --dtypes bf16 --impls chunked
# the parameters of one model at all sizes
measure cpu_growth backbone.py --growth --focal-windows 15 13 9 7 --memory --plot "$picture"
measure cpu_attention attention.py --sizes 224x224x8 784x1344x1 --impls chunked sdpa reference
measure cpu_detector detector.py configs/quickstart/focal_nano_maskrcnn.py \
    --baseline configs/quickstart/swin_nano_maskrcnn.py --data-root data/digit_scenes --memory
measure cpu_busy busy.py
measure cpu_checks checks.py
measure cpu_loader detector.py configs/detection/focal_t_maskrcnn_3x.py --loader-only "${data[@]}"
publish

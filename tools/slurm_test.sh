#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Test under Slurm. Variables: GPUS GPUS_PER_NODE CPUS_PER_TASK SRUN_ARGS PYTHON
# (a cluster without GPUs: SRUN_ARGS=--gres=none, GPUS counts processes)
if [[ $# -lt 4 ]]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG CHECKPOINT [options of test.py]" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/dist_common.sh"
# shellcheck disable=SC2086  # SRUN_ARGS holds several words
exec srun -p "$1" --job-name="$2" --gres="gpu:${GPUS_PER_NODE:-8}" --ntasks="${GPUS:-8}" \
    --ntasks-per-node="${GPUS_PER_NODE:-8}" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "$PYTHON" -u "$TOOLS/test.py" "$3" "$4" --launcher slurm "${@:5}"

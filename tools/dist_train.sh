#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Train on several GPUs, or on several CPU processes where there is no GPU.
# Variables: NNODES NODE_RANK PORT MASTER_ADDR MAX_RESTARTS PYTHON OMP_NUM_THREADS
if [[ $# -lt 2 ]]; then
    echo "usage: $0 CONFIG PROCESSES [options of train.py]" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/dist_common.sh"
launch "$2" "$TOOLS/train.py" "$1" --launcher pytorch "${@:3}"

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Test on several GPUs, or on several CPU processes where there is no GPU.
# Variables: NNODES NODE_RANK PORT MASTER_ADDR MAX_RESTARTS PYTHON OMP_NUM_THREADS
if [[ $# -lt 3 ]]; then
    echo "usage: $0 CONFIG CHECKPOINT PROCESSES [options of test.py]" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/dist_common.sh"
launch "$3" "$TOOLS/test.py" "$1" "$2" --launcher pytorch "${@:4}"

# SPDX-License-Identifier: Apache-2.0
# Sourced by the launch scripts: sets TOOLS and PYTHON, and defines launch.
set -euo pipefail
TOOLS="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
ROOT="$(dirname "$TOOLS")"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
# GNU's OpenMP lets idle threads spin; beside another busy process they take the cores that the
# others need (benchmarks/busy.py measures it).
if [[ -z "${OMP_WAIT_POLICY:-}" ]]; then
    export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-1000}
fi

if [[ -z "${PYTHON:-}" ]]; then
    PYTHON=python
    # conda's base environment is active all the time, so it is nobody's choice
    if [[ -z "${VIRTUAL_ENV:-}" && "${CONDA_DEFAULT_ENV:-base}" == base && -x "$ROOT/.venv/bin/python" ]]; then
        PYTHON="$ROOT/.venv/bin/python"
    fi
fi

free_port() { # not 29500 if free: runs started together would all find it free
    "$PYTHON" -c "import socket; print(socket.create_server(('', 0)).getsockname()[1])"
}

launch() { # launch PROCESSES SCRIPT [ARGUMENTS]
    local processes=$1 nodes=${NNODES:-1}
    shift
    # torch.distributed.run and mmengine would give each process a single thread
    local threads=$(($(nproc) / processes))
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
    export MKL_NUM_THREADS=${MKL_NUM_THREADS:-$OMP_NUM_THREADS}
    source "$TOOLS/keep_memory.sh"
    if [[ -z "${PORT:-}" ]]; then
        # all machines of a job must name the same port
        if [[ $nodes == 1 ]]; then PORT=$(free_port); else PORT=29500; fi
    fi
    exec "$PYTHON" -m torch.distributed.run --nnodes="$nodes" --node_rank="${NODE_RANK:-0}" \
        --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="$PORT" --nproc_per_node="$processes" "$@"
}

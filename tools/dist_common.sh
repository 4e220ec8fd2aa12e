# SPDX-License-Identifier: Apache-2.0
# Sourced by the launch scripts: sets TOOLS and PYTHON, and defines launch.
set -euo pipefail
TOOLS="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
ROOT="$(dirname "$TOOLS")"
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
# In GNU's OpenMP idle threads spin; next to another busy process they occupy cores that the
# others need (benchmarks/busy.py measures it).
if [[ -z "${OMP_WAIT_POLICY:-}" ]]; then
    export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-1000}
fi

if [[ -z "${PYTHON:-}" ]]; then
    PYTHON=python
    # conda's base environment is active by default, so it is not used
    if [[ -z "${VIRTUAL_ENV:-}" && "${CONDA_DEFAULT_ENV:-base}" == base && -x "$ROOT/.venv/bin/python" ]]; then
        PYTHON="$ROOT/.venv/bin/python"
    fi
fi

free_port() { # any free one, because runs started together would all find 29500 free
    "$PYTHON" -c "import socket; print(socket.create_server(('', 0)).getsockname()[1])"
}

launch() { # launch PROCESSES SCRIPT [ARGUMENTS]
    local processes=$1 nodes=${NNODES:-1}
    shift
    # torch.distributed.run and mmengine set a single thread per process
    local threads=$(($(nproc) / processes))
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
    export MKL_NUM_THREADS=${MKL_NUM_THREADS:-$OMP_NUM_THREADS}
    source "$TOOLS/keep_memory.sh"
    if [[ -z "${PORT:-}" ]]; then
        # all machines of a job must use the same port
        if [[ $nodes == 1 ]]; then PORT=$(free_port); else PORT=29500; fi
    fi
    local address=${MASTER_ADDR:-127.0.0.1} meeting
    if [[ "${MAX_RESTARTS:-0}" == 0 ]]; then
        meeting=(--node_rank="${NODE_RANK:-0}" --master_addr="$address" --master_port="$PORT")
    else # a fixed master, or a store that attempts share, keeps the addresses of processes that died
        export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
        meeting=(--rdzv_backend=c10d --rdzv_endpoint="$address:$PORT" --rdzv_id="$PORT" --max_restarts="$MAX_RESTARTS")
    fi
    exec "$PYTHON" -m torch.distributed.run --nnodes="$nodes" "${meeting[@]}" --nproc_per_node="$processes" "$@"
}

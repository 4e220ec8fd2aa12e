#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Set up if needed, then run the tests. Arguments go to pytest; without -m the slow ones are left out.
#
#   bash tools/run_tests.sh                     all but the slow tests
#   bash tools/run_tests.sh -m slow             the slow ones
#   bash tools/run_tests.sh tests/models -x     some
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/tools/setup_env.sh"
cd "$root"
# The tests' tensors are small: files run side by side, one thread each.
cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
source tools/keep_memory.sh
# pytest takes the last -m and -n, so the caller's win.
exec .venv/bin/python -m pytest -m 'not slow' -n "$((cores < 4 ? cores : 4))" --dist loadfile "$@"

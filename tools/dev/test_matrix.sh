#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run the tests against other versions of torch and of the mm* packages, each in an environment of its own.
#
#   bash tools/dev/test_matrix.sh [--set-up | --record] [LEG...]
#
# LEG: oldest, original, middle, lock, newest (default: all); docs/compatibility.md says what each has.
#   --set-up   only make the environments
#   --record   write versions and results to docs/compatibility.md
#   MATRIX_DIR   where the environments go (default .venv-matrix, about 5 GB for each; `lock` is .venv itself)
# A finished environment is used as it is: remove its folder to recreate it. mmcv is kept as a wheel.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
folder=${MATRIX_DIR:-$root/.venv-matrix}

say() { printf '[matrix] %s\n' "$*"; }

# Prints the interpreter of a version of Python, or the default one where it is missing.
find_python() {
  local found
  for found in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
    if "$found" --version >/dev/null 2>&1; then
      echo "$found"
      return
    fi
  done
  echo "${MMFOCAL_PYTHON:-python3}"
}

# Compiles mmcv against the installed torch; the wheel serves when the environment is made again.
install_mmcv() {
  local leg=$1 requirement=$2 wheels=$folder/wheels/$1 source=$folder/mmcv-$1
  if ! compgen -G "$wheels/*.whl" >/dev/null; then
    say "$leg: compiling mmcv, which takes about 10 minutes on 2 cores"
    mkdir -p "$source"
    "$python" -m pip download --quiet --no-deps --no-binary :all: --no-build-isolation --dest "$source" -r "$requirement"
    tar --extract --gzip --strip-components 1 --directory "$source" --file "$(echo "$source"/*.tar.gz)"
    # torch 2.14 needs C++20; mmcv's setup.py asks for C++17
    if [[ $leg == newest ]]; then sed -i 's/-std=c++17/-std=c++20/' "$source/setup.py"; fi
    CUDA_VISIBLE_DEVICES='' MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} CFLAGS='-DNDEBUG -fwrapv -O2 -g0' \
      "$python" -m pip wheel --quiet --no-deps --no-build-isolation --no-cache-dir --wheel-dir "$wheels" "$source"
    rm -r "$source"
  fi
  "$python" -m pip install --quiet --no-deps "$wheels"/*.whl
}

# Makes the environment of a leg unless it is there; sets `python`.
set_up() {
  local leg=$1 version
  if [[ $leg == lock ]]; then
    bash tools/setup_env.sh
    python=$root/.venv/bin/python
    return
  fi
  python=$folder/$leg/bin/python
  if [[ -f $folder/$leg/.ready ]]; then return; fi
  version=$(case $leg in oldest) echo 3.10 ;; middle) echo 3.12 ;; *) echo 3.11 ;; esac)
  say "$leg: making $folder/$leg"
  if [[ ! -x $python ]]; then "$(find_python "$version")" -m venv "$folder/$leg"; fi
  local install=("$python" -m pip install --quiet)
  "${install[@]}" -r requirements/build.txt
  "${install[@]}" --no-cache-dir -r "requirements/matrix/$leg.txt"
  case $leg in
    original) install_mmcv "$leg" requirements/matrix/original-mmcv.txt ;;
    middle | newest) # what the lock has, but for what torch brings
      "${install[@]}" --no-deps --no-build-isolation -r <(grep -Ev '^(triton|sympy)=' requirements/lock.txt)
      install_mmcv "$leg" requirements/mmcv.txt
      ;;
  esac
  if [[ -f requirements/matrix/$leg-hosts.txt ]]; then
    "${install[@]}" --no-deps -r "requirements/matrix/$leg-hosts.txt"
  fi
  "${install[@]}" --no-build-isolation -c "requirements/matrix/$leg.txt" -e .
  touch "$folder/$leg/.ready"
}

# Runs the tests of a leg: those of what a torch or a host can break, the command lines of the three tasks where all hosts
# are installed, and two steps of training per recipe and host.
run_tests() {
  local leg=$1 report=$folder/$1.xml status=0
  local tests=(tests/models tests/ops tests/configs tests/plug_in)
  if "$python" -c 'import mmdet, mmseg, mmpretrain' 2>/dev/null; then
    tests+=(tests/detection tests/datasets tests/tools/test_train_and_test.py)
  fi
  say "$leg: tests"
  OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} "$python" -m pytest -q -p no:cacheprovider --junitxml "$report" \
    -m 'not slow or plug_in' "${tests[@]}" || status=$?
  if [[ -n $record ]]; then "$python" tools/dev/record_leg.py "$leg" "$report" docs/compatibility.md; fi
  return "$status"
}

record='' only_set_up='' legs=()
for argument in "$@"; do
  case $argument in
    --record) record=1 ;;
    --set-up) only_set_up=1 ;;
    oldest | original | middle | lock | newest) legs+=("$argument") ;;
    *)
      say "unknown argument '$argument'; see the head of tools/dev/test_matrix.sh" >&2
      exit 2
      ;;
  esac
done
if [[ ${#legs[@]} -eq 0 ]]; then legs=(oldest original middle lock newest); fi
failed=()
mkdir -p "$folder"
for leg in "${legs[@]}"; do
  set_up "$leg"
  if [[ -z $only_set_up ]]; then run_tests "$leg" || failed+=("$leg"); fi
done
if [[ ${#failed[@]} -gt 0 ]]; then
  say "failed: ${failed[*]}"
  exit 1
fi

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Make .venv beside this repository's setup.py with everything that mmfocal is tested with, mmcv's ops included.
#
#   bash tools/setup_env.sh
#
# A finished set-up is recognized immediately; an interrupted one is continued.
#   MMFOCAL_PYTHON     interpreter for a new .venv (default python3; 3.11 or 3.12)
#   MMFOCAL_CPU_OPS=1  on a machine with an NVIDIA GPU and no fitting CUDA compiler: build mmcv's ops for the CPU only
# pip's own variables (PIP_...) work as usual, for instance to take a CPU-only build of torch.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
python=$venv/bin/python
stamp=$venv/.mmfocal-ready
cpu_ops=${MMFOCAL_CPU_OPS:-0}
cd "$root"

say() { printf '[setup] %s\n' "$*"; }
fail() { printf '[setup] ERROR: %s\n' "$*" >&2; exit 1; }

# Prints the inputs of the environment. The folder is one, because the editable install points to it.
fingerprint() {
  echo "$root cpu_ops=$cpu_ops"
  "$python" --version
  sha256sum requirements/*.txt tools/setup_env.sh setup.py pyproject.toml mmfocal/version.py
}

ready() { [[ -f $stamp && -x $python && $(<"$stamp") == "$(fingerprint)" ]]; }

pip_install() { "$python" -m pip install --disable-pip-version-check "$@"; }

check_python() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || fail \
    "$1 is $("$1" --version 2>&1), but the pinned packages need Python 3.11 or 3.12." \
    "Set MMFOCAL_PYTHON to such an interpreter (and remove .venv if it was made with another)."
}

make_venv() {
  local base=${MMFOCAL_PYTHON:-python3}
  if [[ -x $python ]] && "$python" -m pip --version >/dev/null 2>&1; then
    check_python "$python"
    return
  fi
  command -v "$base" >/dev/null || fail "no '$base' found. Install Python 3.11 or 3.12, or set MMFOCAL_PYTHON."
  check_python "$base"
  say "making .venv with $("$base" --version)"
  "$base" -m venv "$venv" || fail "'$base -m venv' failed; on Debian and Ubuntu: apt install python3-venv"
}

check_compiler() {
  command -v "${CC:-gcc}" >/dev/null && command -v "${CXX:-g++}" >/dev/null || fail \
    "no C++ compiler (${CC:-gcc}, ${CXX:-g++}), and mmcv's ops are compiled from source." \
    "On Debian and Ubuntu: apt install build-essential"
  "$python" - <<'PY' || fail "no Python.h for $python; on Debian and Ubuntu: apt install python3-dev"
import pathlib, sys, sysconfig
sys.exit(not pathlib.Path(sysconfig.get_path('include'), 'Python.h').exists())
PY
}

# True if mmcv is the pinned one and its ops import with this torch and know CUDA wherever torch can use it (a wheel in
# pip's cache does not say for which torch, nor whether with CUDA, it was built).
ops_work() {
  MMFOCAL_CPU_OPS=$cpu_ops "$python" - <<'PY' >/dev/null 2>&1
import os
from importlib.metadata import version
from pathlib import Path
import torch
from mmcv._ext import get_compiling_cuda_version
assert f'onedl-mmcv=={version("onedl-mmcv")}' in Path('requirements/mmcv.txt').read_text().split()
cpu_is_enough = not torch.cuda.is_available() or os.environ['MMFOCAL_CPU_OPS'] == '1'
assert cpu_is_enough or get_compiling_cuda_version() != 'not available'
PY
}

# mmcv compiles for CUDA if and only if torch sees a GPU. Prints the variables for that, or says what is missing: without
# a fitting nvcc it ends in pages of compiler errors.
cuda_variables() {
  "$python" - <<'PY'
import glob, os, re, shutil, subprocess, sys
from pathlib import Path
import torch

if not torch.cuda.is_available() or torch.version.cuda is None:
    sys.exit()
major = torch.version.cuda.split('.')[0]
nvcc = shutil.which('nvcc')
homes = [os.environ.get('CUDA_HOME'), nvcc and Path(nvcc).parents[1], *sorted(glob.glob('/usr/local/cuda*'))]
found = {}
for home in (Path(home) for home in homes if home):
    if (home / 'bin/nvcc').exists() and (home / 'include/cuda_runtime.h').exists():
        text = subprocess.run([home / 'bin/nvcc', '--version'], capture_output=True, text=True, check=True).stdout
        found[str(home)] = re.search(r'release ([\d.]+)', text)[1]
fitting = [home for home, release in found.items() if release.split('.')[0] == major]
if not fitting:
    there = ', '.join(f'CUDA {release} in {home}' for home, release in found.items()) or 'none'
    sys.exit(
        f'[setup] ERROR: to build its ops for your NVIDIA GPU, mmcv needs the CUDA compiler nvcc {major}.x, as torch is '
        f'built with CUDA {torch.version.cuda}. Found: {there}. Install the CUDA {torch.version.cuda} toolkit and set '
        'CUDA_HOME to its folder, or set MMFOCAL_CPU_OPS=1 to go on with ops for the CPU only (detectors then cannot '
        'run on the GPU).'
    )
# A toolkit may lack headers such as those of cuBLAS; torch's CUDA packages contain them.
headers = sorted(map(str, Path(torch.__file__).parents[1].glob('nvidia/*/include')))
print(f'CUDA_HOME={fitting[0]}')
print('CPATH=' + ':'.join(filter(None, [os.environ.get('CPATH'), *headers])))
PY
}

install_mmcv() {
  # -g0 and NDEBUG halve the size of the library and the time to link it.
  env "${build_env[@]}" MMCV_WITH_OPS=1 MAX_JOBS="${MAX_JOBS:-$(nproc)}" CFLAGS='-DNDEBUG -fwrapv -O2 -g0' \
    "$python" -m pip install --disable-pip-version-check --no-build-isolation --no-deps "$@" -r requirements/mmcv.txt
}

mmcv_with_ops() {
  if ops_work; then
    say 'mmcv with compiled ops is there'
    return
  fi
  local variables=CUDA_VISIBLE_DEVICES= build_env=()
  if [[ $cpu_ops != 1 ]]; then variables=$(cuda_variables); fi
  if [[ -n $variables ]]; then mapfile -t build_env <<<"$variables"; fi
  say "installing mmcv; its ops are compiled from source on $(nproc) cores, which takes about 10 minutes on 2 cores and" \
    'less on more (several times that with CUDA), unless pip has kept the result of an earlier build'
  # pip considers an incomplete mmcv, or one without ops, as installed, so the installation is forced.
  install_mmcv --force-reinstall
  ops_work || {
    say 'the mmcv that pip had kept does not fit this torch and machine; recompiling it'
    install_mmcv --force-reinstall --no-cache-dir
  }
  ops_work || fail "mmcv's ops do not import; see: .venv/bin/python -c 'import torch, mmcv._ext'"
}

if ready; then exit; fi
exec 9<"$root/tools/setup_env.sh"
flock --nonblock 9 || { say 'waiting for another set-up of this folder'; flock 9; }
if ready; then exit; fi

SECONDS=0
rm -f "$stamp"
make_venv
ops_work || check_compiler
say 'build tools'
pip_install --quiet -r requirements/build.txt
say 'torch and torchvision (the default build, with CUDA, is a download of about 3 GB)'
pip_install --quiet -r requirements/torch.txt -c requirements/lock.txt
if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1 &&
  ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  say 'NOTE: this machine has an NVIDIA GPU that torch cannot use (driver too old for it, or a CPU-only torch);' \
    'everything will run on the CPU'
fi
say 'the locked packages'
pip_install --quiet --no-deps --no-build-isolation -r requirements/lock.txt
mmcv_with_ops
say 'mmfocal itself, editable'
pip_install --quiet --no-deps --no-build-isolation -e .
"$python" -c 'import mmdet, mmengine, mmpretrain, mmseg, torchvision' ||
  fail 'the installed packages do not import; remove .venv and run this script again'
fingerprint >"$stamp"
say "done in $((SECONDS / 60)) min $((SECONDS % 60)) s: $venv"

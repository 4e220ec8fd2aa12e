# SPDX-License-Identifier: Apache-2.0
"""Print all relevant versions for bug reports: ``python -m mmfocal.collect_env``."""

from __future__ import annotations

import importlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch
from mmengine.utils.dl_utils import collect_env as collect_mmengine_env

from mmfocal import environment, settings
from mmfocal.version import __version__

LIBRARIES = (
    'torchvision',
    'triton',
    'numpy',
    'cv2',
    'mmengine',
    'mmcv',
    'mmdet',
    'mmseg',
    'mmpretrain',
)


def collect() -> dict[str, str]:
    """Collect the environment, one printable value per name.

    A missing package is listed as not installed, and a package that cannot be imported with its
    error.
    """
    env = {
        'mmfocal': f'{__version__} ({_git_state()})',
        **settings.current(),
        'Python': platform.python_version(),
        'System': platform.platform(),
        'CPU': f'{_cpu_model()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads',
        'GPU': _gpus(),
        'torch': f'{torch.__version__} (CUDA {torch.version.cuda}, ROCm {torch.version.hip})',
    }
    owners = metadata.packages_distributions()
    env.update({name: _library(name, owners.get(name, [])) for name in LIBRARIES})
    env['mmcv ops'] = _mmcv_ops()
    problems = {f'problem {i}': text for i, text in enumerate(environment.problems(), 1)}
    return env | _compilers() | (problems or {'problems': 'none known'})


def _git_state() -> str:
    """Return the short commit of this package's checkout, or the place of its installation."""
    root = Path(__file__).resolve().parents[1]
    if not (root / '.git').exists():
        return f'installed in {root}'
    try:
        command = ['git', '-C', str(root), 'describe', '--always', '--dirty']
        return (
            'git '
            + subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        )
    except (OSError, subprocess.CalledProcessError) as error:
        return f'git commit unknown: {error}'


def _cpu_model() -> str:
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = (line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
    return next(models, platform.processor() or platform.machine())


def _gpus() -> str:
    if not torch.cuda.is_available():
        return 'none that torch can use'
    devices = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return ', '.join(
        f'{gpu.name} (sm_{gpu.major}{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB)'
        for gpu in devices
    )


def _library(name: str, distributions: list[str]) -> str:
    """Return the version of a library and the distribution that provides it, e.g. onedl-mmcv."""
    owners = ', '.join(
        f'{owner} {metadata.version(owner)}' for owner in sorted(set(distributions))
    )
    try:
        module = importlib.import_module(name)
    except Exception as error:  # all errors of a broken installation belong in the report
        if not distributions:
            return 'not installed'
        return f'from {owners}; import fails: {type(error).__name__}: {error}'
    return f'{module.__version__} (from {owners or module.__file__})'


def _mmcv_ops() -> str:
    try:
        ops = importlib.import_module('mmcv.ops')
    except Exception as error:  # as above, e.g. a missing file or an ABI mismatch
        return f'not usable: {type(error).__name__}: {error}'
    return f'compiled by {ops.get_compiler_version()}, CUDA {ops.get_compiling_cuda_version()}'


def _compilers() -> dict[str, str]:
    """Return MMEngine's information about the compilers."""
    try:
        env = collect_mmengine_env()
    except Exception as error:  # compilers fail, or distutils is missing (since Python 3.12)
        return {'compilers': f'unknown: {type(error).__name__}: {error}'}
    return {name: str(env[name]) for name in ('CUDA_HOME', 'NVCC', 'GCC', 'MSVC') if name in env}


def main() -> None:
    """Print the environment with aligned names."""
    env = collect()
    width = max(map(len, env)) + 2
    for name, value in env.items():
        print(f'{name + ":":{width}}{value}')


if __name__ == '__main__':
    main()

# SPDX-License-Identifier: Apache-2.0
"""Environment variables, which no other module reads; ``docs/environment.md`` describes them."""

import os
import subprocess
from collections.abc import Sequence

from mmfocal.errors import InputError

ATTN_IMPL = 'MMFOCAL_ATTN_IMPL'
CPU_LINEAR = 'MMFOCAL_CPU_LINEAR'
TRITON_TUNE = 'MMFOCAL_TRITON_TUNE'
TRITON_INTERPRET = 'TRITON_INTERPRET'  # Triton's own
HF_ENDPOINT = 'HF_ENDPOINT'  # the Hugging Face Hub's own
NAMES = (ATTN_IMPL, CPU_LINEAR, TRITON_TUNE, TRITON_INTERPRET, HF_ENDPOINT)

# launcher -> variables of rank, number of processes, and rank on the machine
LAUNCHERS = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}
STORE_PER_WORKER = 'TORCH_DISABLE_SHARE_RDZV_TCP_STORE'  # torchrun's


def choice(name: str, allowed: Sequence[str]) -> str:
    """Return the value of a variable; ``'auto'`` if it is empty or not set.

    Raises:
        ValueError: If the value is not allowed.
    """
    chosen = value(name, 'auto')
    if chosen not in allowed:
        raise InputError(
            f'environment variable {name} must be one of {", ".join(allowed)}, got {chosen!r}'
        )
    return chosen


def value(name: str, default: str) -> str:
    """Return the value of a variable; the default if it is empty or not set."""
    return os.environ.get(name) or default


def is_on(name: str) -> bool:
    """Return whether a switch is on, by the values that Triton accepts."""
    return os.environ.get(name, '').lower() in ('1', 'true', 'yes', 'on', 'y')


def current() -> dict[str, str]:
    """Return every variable of the package with its value, or ``'not set'``."""
    return {name: os.environ.get(name, 'not set') for name in NAMES}


def rank(launcher: str) -> int:
    """Return the rank that the launcher gave this process.

    Args:
        launcher: ``none``, ``pytorch``, ``slurm`` or ``mpi``.
    """
    return 0 if launcher == 'none' else _integer(LAUNCHERS[launcher][0], '0')


def world_size(launcher: str) -> int:
    """Return the number of processes that the launcher starts; arguments as in :func:`rank`."""
    return 1 if launcher == 'none' else _integer(LAUNCHERS[launcher][1], '1')


def _integer(name: str, default: str) -> int:
    text = value(name, default)
    if not text.isdecimal():
        raise InputError(f'environment variable {name} must be an integer, got {text!r}')
    return int(text)


def absent(launcher: str) -> list[str]:
    """Return the variables that the launcher must set and has not set; see :func:`rank`."""
    return [name for name in LAUNCHERS.get(launcher, ()) if name not in os.environ]


def set_local_rank(local_rank: int) -> None:
    """Set the rank on the machine, unless the launcher has set it."""
    os.environ.setdefault('LOCAL_RANK', str(local_rank))


def set_rendezvous(launcher: str) -> None:
    """Set the variables of ``torchrun`` from those of Slurm or Open MPI; see :func:`rank`."""
    if launcher == 'pytorch':
        return
    for name, source in zip(LAUNCHERS['pytorch'], LAUNCHERS[launcher], strict=True):
        os.environ[name] = os.environ[source]
    os.environ.setdefault('MASTER_PORT', '29500')
    if launcher == 'slurm' and 'MASTER_ADDR' not in os.environ:
        nodes = ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']]
        os.environ['MASTER_ADDR'] = subprocess.check_output(nodes, text=True).split()[0]

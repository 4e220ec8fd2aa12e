# SPDX-License-Identifier: Apache-2.0
"""Launch configurations of kernels: block sizes, number of warps and stages."""

from functools import cache
from typing import Any, NamedTuple

import torch

from mmfocal import settings

from .columns import ALIGNMENT
from .operators import INTERPRETED


class Config(NamedTuple):
    """Keys per block, number of warps and of pipeline stages."""

    BLOCK_K: int
    num_warps: int
    num_stages: int

    @classmethod
    def of(cls, config: Any) -> 'Config':
        """Convert a ``triton.Config``."""
        return cls(config.kwargs['BLOCK_K'], config.num_warps, config.num_stages)


# Blocks of keys divide ``ALIGNMENT``. The first configuration is the smallest: it fits the on-chip
# memory of every supported GPU. The memory of a program grows with BLOCK_K and num_stages.
CONFIGS = (
    Config(32, 4, 1),
    Config(32, 4, 2),
    Config(64, 4, 1),
    Config(64, 4, 2),
    Config(64, 8, 2),
)


def block(size: int) -> int:
    """Round up to a block size: a power of two, at least 16 for dot products."""
    return max(16, 1 << (size - 1).bit_length())


def largest_block(dtype: torch.dtype, head_dim: int) -> int:
    """Return how many queries or keys fit the registers of a program.

    Wide heads and float32, whose exact products use no tensor cores, halve the number.
    """
    return 64 >> (block(head_dim) > 64) >> (dtype == torch.float32)


# By kernel, bytes of the dtype, channels of a head (as a block) and capability. The choice is
# based on compiler output, not on measurements: fewest spills, most programs per multiprocessor,
# fewest instructions. On Hopper, eight warps would compute the products of 64 rows twice. Newer
# GPUs use the rows of 8, which need less on-chip memory than any GPU since has.
_CHOSEN = {
    ('forward', 2, 16, 8): Config(64, 4, 1),
    ('forward', 2, 32, 8): Config(64, 4, 1),
    ('forward', 2, 16, 9): Config(64, 4, 1),
    ('forward', 2, 32, 9): Config(64, 4, 1),
    ('forward', 2, 64, 9): Config(64, 4, 1),
    ('gradient', 2, 32, 8): Config(64, 8, 1),
    ('gradient', 2, 16, 9): Config(64, 4, 1),
    ('gradient', 2, 32, 9): Config(64, 4, 1),
    ('gradient', 2, 64, 9): Config(32, 4, 1),
}


def fitting(dtype: torch.dtype, head_dim: int) -> list[Config]:
    """Return the configurations whose blocks fit the registers, the smallest first."""
    largest = largest_block(dtype, head_dim)
    configs = [config for config in CONFIGS if largest >= config.BLOCK_K]
    return configs or [CONFIGS[0]._replace(BLOCK_K=largest)]


def _key(
    kernel: str, dtype: torch.dtype, head_dim: int, capability: int
) -> tuple[str, int, int, int]:
    return kernel, dtype.itemsize, block(head_dim), capability


@cache
def choose(kernel: str, dtype: torch.dtype, head_dim: int, capability: int) -> Config:
    """Return the configuration of a kernel, ``'forward'`` or ``'gradient'``.

    Where none has been chosen, it is the smallest one.

    Args:
        kernel: Name of the kernel.
        dtype: Dtype of the tokens.
        head_dim: Channels of a head.
        capability: Major compute capability.
    """
    if INTERPRETED:
        return Config(ALIGNMENT, 4, 1)
    row = 8 if capability > 9 else capability
    return _CHOSEN.get(_key(kernel, dtype, head_dim, row)) or fitting(dtype, head_dim)[0]


def is_tuning() -> bool:
    """Return whether kernels are autotuned on the first call per kernel, dtype and head size."""
    return settings.is_on(settings.TRITON_TUNE) and not INTERPRETED


@cache
def tuned(kernel: Any, dtype: torch.dtype, head_dim: int, restored: str | None = None) -> Any:
    """Return an autotuned kernel.

    Args:
        kernel: Triton kernel.
        dtype: Dtype of the tokens.
        head_dim: Channels of a head.
        restored: Argument that the kernel adds to; it is restored after each trial.
    """
    import triton

    configs = [
        triton.Config({'BLOCK_K': size}, num_warps=warps, num_stages=stages)
        for size, warps, stages in fitting(dtype, head_dim)
    ]
    # Triton's autotuner already distinguishes the dtypes of tensors.
    restore_value = None if restored is None else [restored]
    return triton.autotune(configs, key=['HEAD_DIM', 'WINDOW_SIZE'], restore_value=restore_value)(
        kernel
    )


@cache
def print_fastest(
    kernel: str, dtype: torch.dtype, head_dim: int, capability: int, config: Config
) -> None:
    """Print the result of autotuning once, as a line of the chosen configurations."""
    print(f'{_key(kernel, dtype, head_dim, capability)}: {config},', flush=True)

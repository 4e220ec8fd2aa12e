# SPDX-License-Identifier: Apache-2.0
"""Linear layers on CPUs: by MKL, or by oneDNN as a 1x1 convolution.

PyTorch multiplies fp32 matrices with Intel's MKL, which does not use AVX-512 on AMD processors,
and convolves with oneDNN, which does. The results are equal up to rounding. Two cores of a Zen 5
reached 383 to 458 GFLOP/s with oneDNN and 183 to 198 with MKL. On a Zen 4, whose vector units are
half as wide, Focal-T takes 0 to 7 % less time.
"""

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mmfocal import compat, settings

from . import memory

LINEAR_CHOICES = ('auto', 'mkl', 'onednn')
CPU_INFO = Path('/proc/cpuinfo')
# PyTorch does not use oneDNN for inputs up to this size, or with a single thread.
SMALL_INPUT = 20480


@cache
def _onednn_is_faster() -> bool:
    """Return whether the CPU is an AMD processor with AVX-512 and PyTorch uses MKL."""
    info = CPU_INFO.read_text().split() if CPU_INFO.exists() else ()  # Linux only
    return {'AuthenticAMD', 'avx512f'} <= set(info) and torch.backends.mkl.is_available()


def _use_onednn(x: Tensor) -> bool:
    choice = settings.choice(settings.CPU_LINEAR, LINEAR_CHOICES)
    if choice == 'mkl' or (choice == 'auto' and not _onednn_is_faster()):
        return False
    has_onednn = torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)
    return has_onednn and torch.get_num_threads() > 1 and x.numel() > SMALL_INPUT


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a linear layer, on some CPUs faster than ``torch.nn.functional.linear``.

    The environment variable ``MMFOCAL_CPU_LINEAR`` selects the library for fp32 on a CPU, unless
    compiled, exported or under autocast: ``'mkl'`` (PyTorch's default), ``'onednn'`` (with
    several threads, for inputs above a minimum size), or ``'auto'``, which is oneDNN on AMD
    processors with AVX-512 (Zen 4 and later).

    Args:
        x: ``(..., K)``.
        weight: ``(N, K)``.
        bias: ``(N)``.

    Returns:
        ``(..., N)``.

    Raises:
        ValueError: If the environment variable has another value.
    """
    tensors = [x, weight] if bias is None else [x, weight, bias]
    is_plain = x.device.type == 'cpu' and not memory.unsupported_reasons(tensors)
    is_fp32 = is_plain and all(tensor.dtype == torch.float32 for tensor in tensors)
    if not is_fp32 or compat.is_autocast_enabled('cpu') or not _use_onednn(x):
        return F.linear(x, weight, bias)
    tokens = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # (1, K, M, 1), channels last
    out = F.conv2d(tokens, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)

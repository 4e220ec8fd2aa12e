# SPDX-License-Identifier: Apache-2.0
"""Fused focal attention for GPUs, written in Triton.

Keys are read directly from the map and the coarse maps; neither gathered keys nor attention
weights are stored in memory. The backward pass recomputes the weights from the queries, the keys
and the saved log-sum-exp of the logits of each query.

This module can be imported without Triton. If the environment variable ``TRITON_INTERPRET=1`` is
set before the import, the kernels also run on CPU tensors, slowly, in Triton's interpreter.
"""

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch
from torch import Tensor

from mmfocal import compat

from ...inputs import FocalInputs
from .attention import focal_attention
from .bias import combined_columns
from .operators import ARE_REGISTERED, INTERPRETED, MAX_EXTENT, MAX_WINDOW_SIZE, capability
from .tokens import pool_tokens, tokens_dtype

__all__ = [
    'INSTALLED',
    'combined_columns',
    'device_reasons',
    'focal_attention',
    'pool_tokens',
    'tokens_dtype',
    'unsupported_reasons',
]

MAX_HEAD_DIM = 128
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MIN_VERSION = '3.3'  # kernels use named tuples
INSTALLED = False
with suppress(ImportError):
    INSTALLED = find_spec('triton') is not None
VERSION = MIN_VERSION  # replaced by the installed version
for _name in ('triton', 'pytorch-triton', 'triton-windows'):
    with suppress(PackageNotFoundError):
        VERSION = version(_name)
IS_TOO_OLD = compat.numbers(VERSION) < compat.numbers(MIN_VERSION)


def _is_unregistered() -> bool:
    """Return whether the call needs registered operators and this PyTorch cannot register them."""
    return not (ARE_REGISTERED or compat.is_plain_eager())


def _interpreter_reasons(device: torch.device, dtype: torch.dtype) -> list[str]:
    reasons = []
    if device.type not in ('cpu', 'cuda'):
        reasons.append(f"the device {device.type} is not supported by Triton's interpreter")
    if dtype == torch.bfloat16:
        reasons.append("torch.bfloat16 is not supported by Triton's interpreter")
    return reasons


def _device_reasons(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Return reasons that concern the device and its support of the dtype."""
    if INTERPRETED:
        return _interpreter_reasons(device, dtype)
    if device.type != 'cuda':
        return [
            f'the device {device.type} is not supported, only cuda is '
            '(unless TRITON_INTERPRET=1 is set)'
        ]
    if torch.version.hip is not None:  # ROCm's devices are also called cuda
        return ['AMD GPUs are not supported']
    reasons = []
    if dtype == torch.float64:
        reasons.append('torch.float64 is supported under TRITON_INTERPRET=1 only')
    needed = 8 if dtype == torch.bfloat16 else 7
    major, minor = capability(device)
    if major < needed:
        reasons.append(
            f'{dtype} needs compute capability {needed}.0, this GPU has {major}.{minor}'
        )
    return reasons


def device_reasons(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Return why kernels do not support a device and a dtype of tokens."""
    if not INSTALLED:
        return ['Triton is not installed']
    old = [f'Triton {MIN_VERSION} or newer is needed, got {VERSION}'] if IS_TOO_OLD else []
    return old + _device_reasons(device, dtype)


def _size_reasons(qkv: Tensor) -> list[str]:
    """Return reasons that concern the size of an image: offsets are 32-bit integers."""
    _, tokens, channels = qkv.shape
    extent = tokens * channels  # of the gradient, and of a copy if channels are not dense
    if qkv.stride(-1) == 1:
        extent = max(extent, (tokens - 1) * qkv.stride(1) + channels)
    if extent < MAX_EXTENT:
        return []
    return [
        f'images must span less than {MAX_EXTENT} elements, but {tokens} tokens with {channels} '
        f'channels of queries, keys and values span {extent}'
    ]


def unsupported_reasons(inputs: FocalInputs) -> list[str]:
    """Return the reasons why inputs are unsupported; only messages that apply are formatted."""
    qkv, w = inputs.qkv, inputs.geometry.window_size
    head_dim = qkv.shape[-1] // 3 // inputs.bias.window.shape[1]
    reasons = [*device_reasons(qkv.device, qkv.dtype), *_size_reasons(qkv)]
    if compat.is_traced_for_export():
        reasons.append('exporting and tracing are not supported')
    if not compat.is_compiling() and compat.are_transforms_active():
        reasons.append(
            'transforms of torch.func and forward-mode differentiation are not supported'
        )
    if _is_unregistered():
        reasons.append('compiling and dispatch modes need PyTorch 2.4 or newer')
    if qkv.dtype not in DTYPES:
        reasons.append(f'{qkv.dtype} is not supported')
    if w > MAX_WINDOW_SIZE:
        reasons.append(f'windows over {MAX_WINDOW_SIZE} are not supported, got {w}')
    if head_dim > MAX_HEAD_DIM:
        reasons.append(
            f'more than {MAX_HEAD_DIM} channels per head are not supported, got {head_dim}'
        )
    if inputs.dropout_p > 0:
        reasons.append('attention dropout is not supported')
    return reasons

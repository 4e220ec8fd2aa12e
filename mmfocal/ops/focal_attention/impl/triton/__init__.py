# SPDX-License-Identifier: Apache-2.0
"""Fused focal attention for GPUs, written in Triton.

Keys are read where they lie, in the map and in the coarse maps; neither gathered keys nor
attention weights ever exist in memory. Backward computes the weights again from the queries, the
keys and one saved number per query, the log-sum-exp of its logits.

Triton need not be installed to import this. With the environment variable ``TRITON_INTERPRET=1``
set beforehand, the kernels also run on CPU tensors, slowly, one operation at a time.
"""

import os
from contextlib import suppress
from importlib.util import find_spec

import torch
from torch import Tensor

from ...geometry import FocalBias, FocalGeometry, merged_bias
from . import function

MAX_WINDOW_SIZE, MAX_HEAD_DIM = 16, 128
MAX_EXTENT = 2**31  # of an image, in elements
# As Triton reads it.
INTERPRETED = os.environ.get('TRITON_INTERPRET', '').lower() in ('1', 'true', 'yes', 'on', 'y')
INSTALLED = False
with suppress(ImportError):
    INSTALLED = find_spec('triton') is not None


def _is_exporting() -> bool:
    """Whether a call is traced for use elsewhere; strict export cannot be told from compiling."""
    if torch.compiler.is_dynamo_compiling():
        return False
    is_exporting = getattr(torch.compiler, 'is_exporting', None)  # since torch 2.7
    return torch.jit.is_tracing() or (is_exporting is not None and is_exporting())


def _device_refusals(qkv: Tensor) -> list[str]:
    """Reasons in the device, and in what it makes of the dtype."""
    if INTERPRETED:
        reasons = {
            f"Triton's interpreter runs on CPUs and GPUs only, not on {qkv.device.type}": (
                qkv.device.type not in ('cpu', 'cuda')
            ),
            "Triton's interpreter computes no dot products in bfloat16": (
                qkv.dtype == torch.bfloat16
            ),
        }
        return [reason for reason, applies in reasons.items() if applies]
    if qkv.device.type != 'cuda':
        return [
            f'it runs on GPUs only, not on {qkv.device.type} (unless TRITON_INTERPRET=1 is set)'
        ]
    reasons = []
    if qkv.dtype == torch.float64:
        reasons.append('it computes in float64 under TRITON_INTERPRET=1 only')
    gpu = torch.cuda.get_device_properties(qkv.device)  # unlike the capability, compiles
    needed = 8 if qkv.dtype == torch.bfloat16 else 7
    if gpu.major < needed:
        reasons.append(
            f'{qkv.dtype} needs compute capability {needed}.0, '
            f'this GPU has {gpu.major}.{gpu.minor}'
        )
    return reasons


def _size_refusals(qkv: Tensor, coarse_kv: tuple[Tensor, ...]) -> list[str]:
    """Reasons in the size of one image: offsets within it are 32-bit integers."""
    # the gradients of all maps are contiguous, and so is the copy of a map without dense channels
    extents = [x.shape[1:].numel() for x in (qkv, *coarse_kv)]
    if qkv.stride(-1) == 1:
        last = zip(qkv.shape[1:], qkv.stride()[1:])
        extents.append(1 + sum((size - 1) * stride for size, stride in last))
    if max(extents) < MAX_EXTENT:
        return []
    _, height, width, channels = qkv.shape
    return [
        f'it takes images of less than {MAX_EXTENT} elements, but one of {height}x{width} tokens '
        f'with {channels} channels of queries, keys and values spans {max(extents)}'
    ]


def refusals(
    qkv: Tensor,
    coarse_kv: tuple[Tensor, ...],
    bias: FocalBias,
    geometry: FocalGeometry,
    scale: float,
    dropout_p: float,
) -> list[str]:
    """Reasons why this back end cannot run a call."""
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    w, head_dim = geometry.window_size, qkv.shape[-1] // 3 // bias.own.shape[1]
    reasons = {
        'Triton is not installed': not INSTALLED,
        'it cannot be exported or traced': _is_exporting(),
        f'it knows no {qkv.dtype}': qkv.dtype not in dtypes,
        'it takes qkv and coarse_kv of one dtype': any(x.dtype != qkv.dtype for x in coarse_kv),
        f'it takes windows up to {MAX_WINDOW_SIZE}, not {w}': w > MAX_WINDOW_SIZE,
        f'it takes up to {MAX_HEAD_DIM} channels per head, not {head_dim}': (
            head_dim > MAX_HEAD_DIM
        ),
        'it drops no attention weights': dropout_p > 0,
    }
    return [
        *_device_refusals(qkv),
        *_size_refusals(qkv, coarse_kv),
        *(reason for reason, applies in reasons.items() if applies),
    ]


def focal_attention(
    qkv: Tensor,
    coarse_kv: tuple[Tensor, ...],
    bias: FocalBias,
    geometry: FocalGeometry,
    scale: float,
    dropout_p: float,
) -> Tensor:
    """See :func:`mmfocal.ops.focal_attention.focal_attention`."""
    coarse = [level.flatten(1, 2) for level in coarse_kv]
    empty = qkv.new_empty(qkv.shape[0], 0, qkv.shape[-1] // 3 * 2)
    constants = [
        geometry.window_size,
        geometry.expand_size,
        geometry.focal_window,
        geometry.focal_level,
        geometry.shift_size,
    ]
    merged = merged_bias(bias, geometry).contiguous()
    out, _ = function.attend(qkv, torch.cat([empty, *coarse], dim=1), merged, constants, scale)
    return out

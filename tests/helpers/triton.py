# SPDX-License-Identifier: Apache-2.0
"""The Triton backend against the reference: on a GPU if there is one, else interpreted.

Its kernels are also compiled for GPUs where there is none.
"""

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from mmfocal.models.fast_path import call_block
from mmfocal.models.focal_transformer import FocalBlock
from mmfocal.ops.focal_attention import FocalGeometry
from tests.helpers.attention import check_half_precision, make_inputs, run, with_large_logits

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
# The interpreter supports float64, in which rounding cannot hide a wrong term.
SHARPEST = torch.float32 if DEVICE == 'cuda' else torch.float64

needs_compilers = pytest.mark.skipif(
    sys.platform != 'linux', reason='Triton brings compilers for Linux only'
)


def few_images(
    geometry: FocalGeometry, windows: tuple[int, int], images: int = 1, **shape: int
) -> dict[str, Tensor]:
    """See ``make_inputs``."""
    inputs = make_inputs(geometry, windows, **shape)
    return {name: value[:images] if 'kv' in name else value for name, value in inputs.items()}


def check(
    geometry: FocalGeometry,
    windows: tuple[int, int],
    shift: int = 0,
    dtype: torch.dtype = SHARPEST,
    **shape: int,
) -> None:
    """Compare output and every gradient with the reference in float64."""
    inputs = few_images(geometry, windows, **shape)
    truth = run(inputs, geometry, 'reference', torch.float64, DEVICE, shift=shift)
    plain = run(inputs, geometry, 'reference', dtype, DEVICE, shift=shift)
    ours = run(inputs, geometry, 'triton', dtype, DEVICE, shift=shift)
    terms = inputs['qkv'][..., 0].numel() * geometry.window_size**2
    for name, value in truth.items():
        rounding = torch.finfo(dtype).eps * value.abs().max()
        if dtype == torch.float64:  # worst case of a sum over all positions
            bound = terms * rounding
        else:  # twice the reference's error, and four roundings
            bound = 2 * (plain[name] - value).abs().max() + 4 * rounding
        error = (ours[name] - value).abs().max()
        assert error <= bound, f'{name}: error {error:.1e}, bound {bound:.1e}'


def check_half(
    geometry: FocalGeometry,
    windows: tuple[int, int],
    shift: int,
    dtype: torch.dtype,
    factor: float = 1.0,
    **shape: int,
) -> None:
    """Weights, gradients of logits, output and result are rounded; see ``check_half_precision``.

    ``factor`` enlarges queries and keys.
    """
    inputs = few_images(geometry, windows, **shape)
    if factor > 1:
        inputs = with_large_logits(inputs, factor)
    check_half_precision(inputs, geometry, 'triton', dtype, DEVICE, shift)


def check_fast_path(dtype: torch.dtype, bound: float) -> None:
    """Compare a block's output and all gradients with its layers and the reference in float64.

    The map is padded and rolled, branches are scaled, and there are three levels. Errors are
    relative to the norm.
    """
    torch.manual_seed(0)
    geometry = FocalGeometry(4, 1, 1, 3)
    block = FocalBlock(8, 1, geometry, shift_size=2, layer_scale_init=0.5, impl='triton')
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    block.to(DEVICE)
    plain = copy.deepcopy(block).double()
    plain.attn.impl = 'reference'
    x = torch.randn(1, 6, 7, 8, device=DEVICE)
    seed = torch.randn(x.shape, device=DEVICE)
    results = []
    for model, run_model in ((block.to(dtype), call_block), (plain, FocalBlock.__call__)):
        like = model.norm1.weight
        leaf = x.to(like.dtype).requires_grad_()
        out = run_model(model, leaf)
        leaves = {'x': leaf, **dict(model.named_parameters())}
        grads = torch.autograd.grad(out, leaves.values(), seed.to(like.dtype))
        results.append({'out': out, **dict(zip(leaves, grads))})
    for name, expected in results[1].items():
        error = (results[0][name] - expected).norm() / expected.norm()
        assert error <= bound, f'{name}: error {error:.1e}, bound {bound:.1e}'


def run_compiler(*arguments: object) -> list[list[str]]:
    """Run ``compile_only`` without the interpreter; return the words of each line it prints."""
    env = {k: v for k, v in os.environ.items() if k != 'TRITON_INTERPRET'}
    command = [sys.executable, '-m', 'tests.helpers.compile_only', *map(str, arguments)]
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return [line.split() for line in result.stdout.splitlines()]

# SPDX-License-Identifier: Apache-2.0
"""The Triton backend against the reference: on a GPU if there is one, else interpreted."""

import torch
from torch import Tensor

from mmfocal.ops.focal_attention import FocalGeometry
from tests.helpers.attention import check_half_precision, make_inputs, run, with_large_logits

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
# The interpreter knows float64, in which a wrong term cannot hide behind rounding.
SHARPEST = torch.float32 if DEVICE == 'cuda' else torch.float64


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
        else:  # as often as the reference, and four roundings
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

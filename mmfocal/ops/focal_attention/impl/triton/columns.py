# SPDX-License-Identifier: Apache-2.0
"""The layout of the combined bias that the kernels read: rows that they load without masks.

The keys of each region begin at a multiple of ``ALIGNMENT`` columns; columns in between belong to
no key.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...geometry import FocalGeometry

ALIGNMENT = 64


def num_columns(geometry: FocalGeometry) -> int:
    return sum(-(-(region.size**2) // ALIGNMENT) * ALIGNMENT for region in geometry.regions)


def to_columns(x: Tensor, geometry: FocalGeometry, value: float) -> Tensor:
    """Insert columns between the regions of ``(..., K)``, filled with ``value``.

    Serves the combined bias and an index of where it comes from.
    """
    parts = []
    for region in geometry.regions:
        count = region.size**2
        part = x[..., region.first : region.first + count]
        parts.append(F.pad(part, (0, -count % ALIGNMENT), value=value))
    return torch.cat(parts, dim=-1)

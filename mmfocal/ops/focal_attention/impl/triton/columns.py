# SPDX-License-Identifier: Apache-2.0
"""Layout of the combined bias for the kernels, which load its rows without masks.

The keys of each region begin at a multiple of ``ALIGNMENT`` columns. The columns in between are
padding.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...geometry import FocalGeometry

ALIGNMENT = 64


def num_columns(geometry: FocalGeometry) -> int:
    return sum(-(-(region.side**2) // ALIGNMENT) * ALIGNMENT for region in geometry.regions)


def to_columns(x: Tensor, geometry: FocalGeometry, value: float) -> Tensor:
    """Insert padding columns between the regions of ``(..., K)``, filled with ``value``.

    This is used for the combined bias and for its index.
    """
    parts = []
    for region in geometry.regions:
        count = region.side**2
        part = x[..., region.first : region.first + count]
        parts.append(F.pad(part, (0, -count % ALIGNMENT), value=value))
    return torch.cat(parts, dim=-1)

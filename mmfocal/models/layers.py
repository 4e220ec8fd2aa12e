# SPDX-License-Identifier: Apache-2.0
"""Layers of the backbone around the attention; shapes as in ``focal_transformer``."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfocal import compat
from mmfocal.ops.focal_attention.geometry import trim


def pad_or_crop(x: Tensor, height: int, width: int) -> Tensor:
    """Zero-pad or crop ``(B, H, W, C)`` on the bottom and right."""
    rows, cols = height - x.shape[1], width - x.shape[2]
    # A recorded graph always pads. Whether a cropped view is contiguous depends on the size, so a
    # compiler would specialize on it, and a trace would fix this branch for all sizes.
    if compat.is_recorded() or rows > 0 or cols > 0:
        return F.pad(x, (0, 0, 0, cols, 0, rows))
    return x[:, :height, :width]


def pad_to_multiple(x: Tensor, divisor: int) -> Tensor:
    """Zero-pad ``(B, H, W, C)`` on the bottom and right to multiples of ``divisor``."""
    # not size + -size % divisor: with a symbolic size this does not simplify to a multiple
    return pad_or_crop(x, *((n + divisor - 1) // divisor * divisor for n in x.shape[1:3]))


def convolve(x: Tensor, conv: nn.Module, stride: int) -> Tensor:
    """Apply a strided convolution to a map: ``(B, H, W, C_in)`` -> ``(B, H', W', C_out)``.

    oneDNN's bfloat16 convolutions on CPUs with AMX leave most of the output unwritten if it is one
    token wide. It is made two tokens wide there; the added zeros equal the padding's.
    """
    x = x.permute(0, 3, 1, 2)
    if x.device.type == 'cpu' and not compat.is_tracing() and x.shape[3] == stride:
        return conv(F.pad(x, (0, stride)))[..., :1].permute(0, 2, 3, 1)
    return conv(x).permute(0, 2, 3, 1)


class DropPath(nn.Module):
    """Stochastic depth: drop a residual branch per sample while training."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1 - self.drop_prob
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        return x * mask / keep

    def extra_repr(self) -> str:
        return f'drop_prob={self.drop_prob:.3g}'


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int, hidden_dim: int, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class FcPool(nn.Module):
    """One weight per position of a cell, shared by all channels (section 3.2.1).

    Weight ``(1, cell * cell)`` and bias ``(1)`` are those of a linear layer. The class does not
    inherit from ``nn.Linear``, because libraries replace linear layers by layers that expect
    another input layout.
    """

    def __init__(self, cell: int) -> None:
        super().__init__()
        self.cell = cell
        self.weight = nn.Parameter(torch.empty(1, cell * cell))
        self.bias = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as ``nn.Linear``."""
        bound = 1 / self.cell
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, cells: Tensor) -> Tensor:
        """``(B, rows, cell, cols, cell, C)`` -> ``(B, rows, cols, C)``.

        Each row of a cell is multiplied separately, because channels are contiguous in memory. A
        linear layer over positions would need contiguous positions and would copy the map.
        """
        weight = self.weight.view(self.cell, 1, 1, self.cell)
        by_row = weight @ cells  # (B, rows, cell, cols, 1, C)
        return by_row.sum(dim=2).squeeze(-2) + self.bias


def make_pool_layer(method: str, dim: int, cell: int) -> nn.Module:
    """Return a layer that pools ``cell x cell`` tokens to one coarse token (paper: ``'fc'``)."""
    layers: dict[str, Callable[[], nn.Module]] = {
        'fc': lambda: FcPool(cell),
        'conv': lambda: nn.Conv2d(dim, dim, cell, stride=cell, groups=dim),
        'mean': lambda: nn.AvgPool2d(cell),
        'max': lambda: nn.MaxPool2d(cell),
    }
    return layers[method]()


def pool_cells(
    x: Tensor, pool: nn.Module, method: str, cell: int, grid: tuple[int, int]
) -> Tensor:
    """Pool a token map to a grid of coarse tokens.

    A map whose size is not a multiple of the cell (``w = 7``, cells of 2x2) is trimmed at its
    border, as evenly as possible.

    Args:
        x: ``(B, H, W, C)``.
        pool: A layer of :func:`make_pool_layer`, or its replacement.
        method: Method of the layer, which determines the layout of its input.
        cell: Side of a cell, in tokens.
        grid: Number of cells, vertically and horizontally.

    Returns:
        ``(B, *grid, C)``.
    """
    rows, cols = grid
    x = trim(x, cell, grid)
    if method == 'fc':
        return pool(x.unflatten(2, (cols, cell)).unflatten(1, (rows, cell)))
    return pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def init_linear(module: nn.Module) -> None:
    """Initialize linear layers, including pooling, as in the released code."""
    if isinstance(module, (nn.Linear, FcPool)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

# SPDX-License-Identifier: Apache-2.0
"""Weighted bidirectional pyramid with dense convolutions.

Differs from EfficientDet's BiFPN: convolutions are dense instead of depthwise-separable, extra
levels are pooled without a convolution, and group norm replaces batch norm.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn


def halve(x: Tensor) -> Tensor:
    """Max-pool 3x3, stride 2: ``(N, C, H, W)`` -> ``(N, C, ceil(H / 2), ceil(W / 2))``."""
    return F.max_pool2d(x, 3, stride=2, padding=1)


class Fusion(nn.Module):
    """Weighted mean of maps of one size, swish, 3x3 convolution and norm."""

    def __init__(self, num_inputs: int, channels: int, norm_cfg: dict) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(num_inputs))
        self.conv = ConvModule(channels, channels, 3, padding=1, norm_cfg=norm_cfg, act_cfg=None)

    def forward(self, *maps: Tensor) -> Tensor:
        """Fuse maps, each ``(N, channels, H, W)``, into one of their shape."""
        weights = self.weights.relu()
        weights = weights / (weights.sum() + 1e-4)
        return self.conv(F.silu(sum(weight * x for weight, x in zip(weights, maps))))


class BiFPNStage(nn.Module):
    """One pass down and one pass up the pyramid.

    Args:
        in_channels: Channels of each level, finest first. A level whose channels differ from
            ``out_channels`` gets a 1x1 convolution.
        out_channels: Channels of every output.
        norm_cfg: Norm after each convolution.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, norm_cfg: dict) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(
            nn.Identity()
            if channels == out_channels
            else ConvModule(channels, out_channels, 1, norm_cfg=norm_cfg, act_cfg=None)
            for channels in in_channels
        )
        steps = len(in_channels) - 1
        self.down = nn.ModuleList(Fusion(2, out_channels, norm_cfg) for _ in range(steps))
        # the coarsest level is unchanged in the top-down pass, so it is used once
        self.up = nn.ModuleList(
            Fusion(2 if step == steps - 1 else 3, out_channels, norm_cfg) for step in range(steps)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Mix levels ``(N, in_channels[i], H_i, W_i)``, each half as large as the one before."""
        laterals = [lateral(x) for lateral, x in zip(self.laterals, maps)]
        outs = list(laterals)
        for i, fuse in reversed(list(enumerate(self.down))):
            outs[i] = fuse(outs[i], F.interpolate(outs[i + 1], size=outs[i].shape[-2:]))
        for i, fuse in enumerate(self.up, start=1):
            unmixed = laterals[i : i + 1] if i < len(self.up) else []
            outs[i] = fuse(halve(outs[i - 1]), outs[i], *unmixed)
        return outs


@MODELS.register_module()
class BiFPN(BaseModule):
    """Bidirectional feature pyramid of the RepPointsV2 models with Swin-like backbones.

    Args:
        in_channels: Channels of the backbone's outputs, finest first.
        out_channels: Channels of every level.
        num_outs: Number of levels; those that the backbone lacks are pooled from its last output.
        num_repeats: Number of top-down and bottom-up passes.
        norm_cfg: Norm after each convolution.

    Raises:
        ValueError: If there are more inputs than levels.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int,
        num_repeats: int,
        norm_cfg: dict,
    ) -> None:
        super().__init__(dict(type='Xavier', layer='Conv2d', distribution='uniform'))
        if len(in_channels) > num_outs:
            raise ValueError(
                f'num_outs={num_outs} is less than the {len(in_channels)} inputs of in_channels='
                f'{in_channels}'
            )
        self.num_extra = num_outs - len(in_channels)
        widths = [*in_channels, *[in_channels[-1]] * self.num_extra]
        self.stages = nn.Sequential(BiFPNStage(widths, out_channels, norm_cfg))
        for _ in range(num_repeats - 1):
            self.stages.append(BiFPNStage([out_channels] * num_outs, out_channels, norm_cfg))

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Build the pyramid.

        Args:
            inputs: The backbone's outputs, each ``(N, in_channels[i], H_i, W_i)``.

        Returns:
            ``num_outs`` levels ``(N, out_channels, H_i, W_i)``.
        """
        maps = list(inputs)
        for _ in range(self.num_extra):
            maps.append(halve(maps[-1]))
        return tuple(self.stages(maps))

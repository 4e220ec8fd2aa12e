# SPDX-License-Identifier: Apache-2.0
"""Losses of RepPoints V2 that mmdet lacks."""

import torch
import torch.nn.functional as F
from mmdet.models.losses import GIoULoss
from mmdet.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class InclusiveGIoULoss(GIoULoss):
    """GIoU of boxes that reach one unit further right and down, as in mmdet 1.x.

    There, corners were pixel indices and a width was ``x2 - x1 + 1``. RepPoints V2 was tuned with
    this on boxes in units of four strides. It also turns inverted boxes the right way round, which
    the first points may span; ``GIoULoss``, today's form, takes them for boxes of positive area.
    """

    def forward(self, pred: Tensor, target: Tensor, *args, **kwargs) -> Tensor:
        """As ``GIoULoss`` for boxes ``(n, 4)``."""
        reach = pred.new_tensor([0.0, 0.0, 1.0, 1.0])
        return super().forward(pred + reach, target + reach, *args, **kwargs)


@MODELS.register_module()
class SeparateFocalLoss(nn.Module):
    """Focal loss in which foreground and background are averaged apart.

    The foreground is a weighted mean. The background's sum is divided by the number of foreground
    cells, since most of it is easy.

    Args:
        gamma: Exponent of the modulating factor.
        alpha: Weight of the foreground; the background has ``1 - alpha``.
        loss_weight: Weight of the whole.
    """

    def __init__(self, gamma: float = 2.0, alpha: float = 0.25, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.gamma = gamma
        self.alpha = alpha
        self.loss_weight = loss_weight

    def forward(self, pred: Tensor, weight: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            pred: Logits of any shape.
            weight: Weights of foreground cells, 0 for background; of the same shape.

        Returns:
            Scalar.
        """
        background = (weight == 0).to(pred)
        found = pred.sigmoid()
        foreground_loss = -F.logsigmoid(pred) * (1 - found) ** self.gamma * weight
        background_loss = -F.logsigmoid(-pred) * found**self.gamma * background
        tiny = torch.finfo(pred.dtype).eps
        count = (weight.numel() - background.sum()).clamp(min=1)
        return self.loss_weight * (
            self.alpha * foreground_loss.sum() / weight.sum().clamp(min=tiny)
            + (1 - self.alpha) * background_loss.sum() / count
        )

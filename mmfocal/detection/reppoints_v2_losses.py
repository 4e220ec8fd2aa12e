# SPDX-License-Identifier: Apache-2.0
"""Losses of RepPointsV2 that mmdet lacks."""

import torch
import torch.nn.functional as F
from mmdet.models.losses import weighted_loss
from mmdet.registry import MODELS
from torch import Tensor, nn


@weighted_loss
def inclusive_giou_loss(pred: Tensor, target: Tensor, eps: float = 1e-7) -> Tensor:
    """Compute 1 - GIoU of boxes whose sides include both corner pixels.

    Args:
        pred: Boxes ``(n, 4)``. Inverted boxes have a negative area and therefore a gradient.
        target: Boxes ``(n, 4)``.
        eps: Added to denominators.

    Returns:
        Losses ``(n,)``.
    """
    top_left, bottom_right = pred[:, :2], pred[:, 2:]
    inner = (
        torch.min(bottom_right, target[:, 2:]) - torch.max(top_left, target[:, :2]) + 1
    ).clamp(min=0)
    outer = (
        torch.max(bottom_right, target[:, 2:]) - torch.min(top_left, target[:, :2]) + 1
    ).clamp(min=0)
    area = (bottom_right - top_left + 1).prod(1) + (target[:, 2:] - target[:, :2] + 1).prod(1)
    overlap, enclosing = inner.prod(1), outer.prod(1) + eps
    union = area - overlap + eps
    return 1 - overlap / union + (enclosing - union) / enclosing


@MODELS.register_module()
class InclusiveGIoULoss(nn.Module):
    """GIoU loss of boxes that extend one unit further right and down, as in mmdet 1.x.

    In mmdet 1.x, corners are pixel indices and the width is ``x2 - x1 + 1``. RepPointsV2 was
    tuned with this loss on boxes in units of four strides. Areas are signed, so inverted boxes,
    which the first points may span, have a gradient. The present ``GIoULoss`` clamps the union to
    positive values and has no gradient for boxes that are inverted by more than their union.

    Args:
        loss_weight: Weight of the loss.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            pred: Boxes ``(n, 4)``.
            target: Boxes ``(n, 4)``.
            weight: Weights ``(n, 4)``, equal in each row, or ``(n,)``.
            avg_factor: Divisor of the sum; by default the number of boxes.
            reduction_override: ``none``, ``mean`` or ``sum`` in place of ``mean``.

        Returns:
            Scalar, or ``(n,)`` without reduction.
        """
        if weight is not None and weight.dim() > 1:
            weight = weight.mean(1)
        loss = inclusive_giou_loss(
            pred, target, weight, reduction=reduction_override or 'mean', avg_factor=avg_factor
        )
        return self.loss_weight * loss


@MODELS.register_module()
class SeparateFocalLoss(nn.Module):
    """Focal loss that averages foreground and background separately.

    The foreground loss is a weighted mean. The sum of the background loss is divided by the number
    of foreground cells, because most background cells are easy.

    Args:
        gamma: Exponent of the modulating factor.
        alpha: Weight of the foreground; the background has ``1 - alpha``.
        loss_weight: Weight of the loss.
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

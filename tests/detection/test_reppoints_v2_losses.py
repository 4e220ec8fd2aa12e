# SPDX-License-Identifier: Apache-2.0
"""Each loss against its formula, one element at a time."""

import math

import pytest
import torch
from mmdet.models.losses import GIoULoss

from mmfocal.detection import InclusiveGIoULoss, SeparateFocalLoss


def giou(a: list[float], b: list[float], extra: float) -> float:
    """GIoU of two boxes whose sides are longer by ``extra``."""

    def area(x1: float, y1: float, x2: float, y2: float) -> float:
        return max(x2 - x1 + extra, 0) * max(y2 - y1 + extra, 0)

    inner = area(*(max(a[i], b[i]) for i in (0, 1)), *(min(a[i], b[i]) for i in (2, 3)))
    outer = area(*(min(a[i], b[i]) for i in (0, 1)), *(max(a[i], b[i]) for i in (2, 3)))
    union = area(*a) + area(*b) - inner
    return inner / union - (outer - union) / outer


def test_inclusive_giou_is_the_old_formula():
    pred = torch.tensor([[0.0, 0.0, 2.0, 3.0], [1.0, 1.0, 1.5, 4.0], [5.0, 5.0, 6.0, 6.0]])
    target = torch.tensor([[0.5, 0.5, 2.0, 2.0], [1.0, 1.0, 1.5, 4.0], [0.0, 0.0, 1.0, 1.0]])
    loss = InclusiveGIoULoss(loss_weight=2.0)
    values = [giou(a, b, extra=1.0) for a, b in zip(pred.tolist(), target.tolist())]
    expected = [2 * (1 - value) for value in values]
    found = loss(pred, target, reduction_override='none')
    torch.testing.assert_close(found, torch.tensor(expected))
    plain = [giou(a, b, extra=0.0) for a, b in zip(pred.tolist(), target.tolist())]
    assert abs(values[0] - plain[0]) > 0.1  # it is not today's GIoU


@pytest.mark.parametrize(
    ('box', 'value', 'gradient'),
    [
        ((3, -2, 0, 4), 47 / 21, (7 / 21, -27 / 441, -7 / 21, 27 / 441)),  # union of -5
        ((0, 2, 2, -4), 2 + 6 / 9, None),
    ],
)
def test_inclusive_giou_teaches_boxes_inverted_by_more_than_their_union(box, value, gradient):
    """Areas are signed, as in the released code; mmdet's current loss is constant there."""
    target = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    pred = torch.tensor([box], dtype=torch.float, requires_grad=True)
    loss = InclusiveGIoULoss()(pred, target)
    loss.backward()
    assert loss.item() == pytest.approx(value)
    if gradient:
        torch.testing.assert_close(pred.grad[0], torch.tensor(gradient))
    assert pred.grad.any()


def test_inclusive_giou_turns_inverted_boxes_right():
    """Initial points may span inverted boxes; mmdet's GIoU treats such a box as a large one."""
    target = torch.tensor([[-0.5, -0.5, 0.5, 0.5]])
    for loss, is_turned in ((InclusiveGIoULoss(), True), (GIoULoss(), False)):
        pred = torch.tensor([[0.1, 0.1, 0.0, 0.0]], requires_grad=True)
        loss(pred, target).backward()
        step = -pred.grad[0]
        assert ((step[:2] < 0) & (step[2:] > 0)).all().item() is is_turned


def test_inclusive_giou_counts_positive_boxes_alone():
    pred = torch.rand(3, 4, requires_grad=True)
    target = torch.rand(3, 4)
    weight = torch.tensor([1.0, 0.0, 1.0])[:, None].expand(-1, 4)
    loss = InclusiveGIoULoss()
    parts = loss(pred, target, reduction_override='none')
    torch.testing.assert_close(loss(pred, target, weight, avg_factor=2), parts[[0, 2]].mean())
    nothing = loss(pred, target, weight * 0, avg_factor=1)
    nothing.backward()
    assert nothing == 0 and pred.grad is not None


@pytest.mark.parametrize('weights', [[0.0, 0.5, 0.0, 2.0], [0.0] * 4], ids=['some', 'none'])
def test_separate_focal_loss(weights):
    logits = [-3.0, -1.0, 0.5, 2.0]
    foreground = background = 0.0
    for logit, weight in zip(logits, weights):
        p = 1 / (1 + math.exp(-logit))
        if weight > 0:
            foreground -= 0.25 * (1 - p) ** 2 * math.log(p) * weight / sum(weights)
        else:
            background -= 0.75 * p**2 * math.log(1 - p)
    background /= max(sum(weight > 0 for weight in weights), 1)
    found = SeparateFocalLoss(loss_weight=0.1)(torch.tensor(logits), torch.tensor(weights))
    assert found.item() == pytest.approx(0.1 * (foreground + background))


def test_separate_focal_loss_of_saturated_logits_is_finite():
    logits = torch.tensor([-200.0, 200.0], requires_grad=True)
    loss = SeparateFocalLoss()(logits, torch.tensor([1.0, 0.0]))
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()

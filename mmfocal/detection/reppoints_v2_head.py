# SPDX-License-Identifier: Apache-2.0
"""RepPointsV2: RepPoints with verification of corners and of the foreground.

Shapes: N images; P points of all levels, one per cell; H, W of a level; C classes. A point is
``(x, y, stride_w, stride_h)`` and a box ``(x1, y1, x2, y2)``, both in pixels. Predicted positions
are ``(y, x)`` in strides, relative to their point.

Differences from mmdet's ``RepPointsHead``:
- The first two points are the box's top left and bottom right corners; the others learn only
  through the features sampled there.
- A foreground branch and a corner branch verify the regression. Their features support the other
  branches, and at inference detected corners replace those of large boxes.
- Outputs are in fp32 under mixed precision, and so are targets, losses and decoding.
- Losses are computed over all levels at once; mmdet computes the same values level by level.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule, build_norm_layer
from mmcv.ops import CornerPool, DeformConv2d
from mmdet.models.dense_heads import RepPointsHead
from mmdet.models.losses import QualityFocalLoss
from mmdet.models.task_modules import BaseAssigner
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures.bbox import bbox_overlaps
from mmdet.utils import ConfigType, InstanceList, OptConfigType, OptInstanceList
from mmengine.model import normal_init
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmfocal.compat import check_base

from .reppoints_v2_targets import foreground_weights

check_base(RepPointsHead)

NUM_CORNER_MAPS = 6  # a score and an offset (x, y) for each of the two corners


def flatten_levels(maps: Sequence[Tensor]) -> Tensor:
    """Concatenate levels ``(N, channels, H_i, W_i)`` to ``(N, P, channels)``."""
    return torch.cat([x.flatten(2) for x in maps], dim=2).transpose(1, 2)


def snap_to_corners(boxes: Tensor, scores: Tensor, offsets: Tensor, stride: int) -> Tensor:
    """Replace the corners of boxes by the best detected corners nearby.

    Args:
        boxes: ``(N, P, 4)``.
        scores: ``(N, 2, H, W)`` for top left and bottom right corners.
        offsets: ``(N, 4, H, W)``, from a point to its two corners (x, y) in strides.
        stride: Stride of scores and offsets.

    Returns:
        ``(N, P, 4)``. Of the four points around a corner, the one with the highest score gives
        the new corner.
    """
    height, width = scores.shape[-2:]
    around = (min(2, height), min(2, width))  # a map may be a single row or column
    best = F.max_pool2d(scores, around, stride=1, return_indices=True)[1]
    rows, columns = best.shape[-2:]
    cells = (boxes / stride).unflatten(2, (2, 2)).transpose(1, 2)  # (N, corner, P, xy)
    x = cells[..., 0].clamp(0, columns - 1).long()
    y = cells[..., 1].clamp(0, rows - 1).long()
    index = best.flatten(2).gather(2, y * columns + x)  # (N, corner, P)
    offsets = offsets.flatten(2).unflatten(1, (2, 2)).transpose(2, 3)  # (N, corner, H * W, xy)
    offset = offsets.gather(2, index[..., None].expand(-1, -1, -1, 2))
    corners = torch.stack([index % width, index // width], dim=3) + offset
    return (corners * stride).transpose(1, 2).flatten(2)


class CornerPooling(nn.Module):
    """Corner pooling: features of one kind of box corner by maxima along its two sides.

    Args:
        channels: Channels of input and output.
        pooled_channels: Channels that are pooled.
        sides: ``CornerPool`` modes of the two sides.
        norm_cfg: Norm after each convolution.
    """

    def __init__(
        self, channels: int, pooled_channels: int, sides: tuple[str, str], norm_cfg: OptConfigType
    ) -> None:
        super().__init__()
        self.sides = nn.ModuleList(
            nn.Sequential(
                ConvModule(channels, pooled_channels, 3, padding=1, norm_cfg=norm_cfg),
                CornerPool(side),
            )
            for side in sides
        )
        plain = dict(norm_cfg=norm_cfg, act_cfg=None)
        self.merge = ConvModule(pooled_channels, channels, 3, padding=1, **plain)
        self.skip = ConvModule(channels, channels, 1, **plain)
        self.out = ConvModule(channels, channels, 1, norm_cfg=norm_cfg)

    def init_weights(self) -> None:
        """Reset the convolutions: Kaiming if an activation follows, else PyTorch's default."""
        for module in (*(side[0] for side in self.sides), self.out):
            module.init_weights()
        for module in (self.merge, self.skip):
            module.conv.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Pool ``(N, channels, H, W)``; the shape stays the same."""
        pooled = sum(side(x) for side in self.sides)
        return self.out(F.relu(self.merge(pooled) + self.skip(x)))


class Grid(NamedTuple):
    """Locations of the predictions of a batch.

    Attributes:
        points: ``(P, 4)``, level by level.
        valid: ``(N, P)``, false where an image was padded to the size of the batch.
        num_valid: Number of valid points of each image on each level.
    """

    points: Tensor
    valid: Tensor
    num_valid: list[list[int]]

    def select(self, image: int) -> tuple[Tensor, list[int]]:
        """Return valid points ``(P,)`` of an image and their number on each level."""
        return self.valid[image], self.num_valid[image]


class BoxTargets(NamedTuple):
    """Targets of each point.

    Attributes:
        labels: ``(N, P)``, C for background.
        boxes: ``(N, P, 4)``, 0 for background.
        weights: ``(N, P)``, 0 for ignored points.
        positive: ``(N, P)``, true for points assigned to an object.
    """

    labels: Tensor
    boxes: Tensor
    weights: Tensor
    positive: Tensor

    @property
    def avg_factor(self) -> int:
        """Number of positive points; each image counts at least one."""
        return self.positive.sum(1).clamp(min=1).sum().item()


@MODELS.register_module()
class RepPointsV2Head(RepPointsHead):
    """Dense head of RepPointsV2 (https://arxiv.org/abs/2007.08508).

    ``train_cfg`` has three assigners: ``init`` for the initial boxes, ``refine`` for the final
    boxes, which it assigns by the initial ones, and ``corner``.

    Args:
        num_classes: Number of classes C.
        in_channels: Channels of the input.
        loss_cls: Loss of classes. ``QualityFocalLoss`` is given the IoU of the final box.
        loss_heatmap: Loss of corner scores.
        loss_offset: Loss of corner offsets.
        loss_foreground: Loss of the foreground branch.
        corner_channels: Channels of corner pooling.
        point_norm_cfg: Norm after the deformable convolutions. The released head has none; with
            large learning rates most of its units die.
        **kwargs: Arguments of ``RepPointsHead`` except ``use_grid_points``, ``center_init``,
            ``transform_method`` and ``init_cfg``, which are fixed.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        *,
        loss_cls: ConfigType,
        loss_heatmap: ConfigType,
        loss_offset: ConfigType,
        loss_foreground: ConfigType,
        corner_channels: int = 64,
        point_norm_cfg: OptConfigType = None,
        **kwargs,
    ) -> None:
        self.corner_channels, self.point_norm_cfg = corner_channels, point_norm_cfg
        super().__init__(
            num_classes,
            in_channels,
            loss_cls=loss_cls,
            use_grid_points=False,
            center_init=True,
            transform_method='corners',
            init_cfg=dict(
                type='Normal',
                layer=['Conv2d', 'DeformConv2d'],
                std=0.01,
                override=[
                    dict(type='Normal', name=name, std=0.01, bias_prob=0.01)
                    for name in ('reppoints_cls_out', 'corner_scores', 'foreground_out')
                ],
            ),
            **kwargs,
        )
        if self.train_cfg:
            self.corner_assigner = TASK_UTILS.build(self.train_cfg['corner']['assigner'])
        self.loss_heatmap = MODELS.build(loss_heatmap)
        self.loss_offset = MODELS.build(loss_offset)
        self.loss_foreground = MODELS.build(loss_foreground)

    def _init_layers(self) -> None:
        super()._init_layers()
        channels, norm_cfg = self.feat_channels, self.norm_cfg
        self.shared_conv = ConvModule(channels, channels, 3, padding=1, norm_cfg=norm_cfg)
        self.foreground_out = nn.Conv2d(channels, self.cls_out_channels, 1)
        self.foreground_embedding = ConvModule(channels, channels, 1, norm_cfg=norm_cfg)
        corners = (('top', 'left'), ('bottom', 'right'))
        self.corner_pools = nn.ModuleList(
            CornerPooling(channels, self.corner_channels, corner, norm_cfg) for corner in corners
        )
        self.corner_scores, self.corner_offsets = (
            nn.ModuleList(nn.Conv2d(channels, width, 3, padding=1) for _ in corners)
            for width in (1, 2)
        )
        self.reppoints_cls_conv, self.reppoints_pts_refine_conv = (
            DeformConv2d(
                channels + NUM_CORNER_MAPS,
                self.point_feat_channels,
                self.dcn_kernel,
                padding=self.dcn_pad,
            )
            for _ in range(2)
        )
        self.reppoints_cls_norm, self.reppoints_pts_refine_norm = (
            build_norm_layer(self.point_norm_cfg, self.point_feat_channels)[1]
            if self.point_norm_cfg
            else nn.Identity()
            for _ in range(2)
        )

    def init_weights(self) -> None:
        """Initialize as the released head.

        ``init_cfg`` also applies to the convolutions of the corner pools, which the released head
        does not initialize, and MMEngine reinitializes ``shared_conv`` afterwards. Both are reset.
        """
        is_initialized = self.is_init
        super().init_weights()
        if not is_initialized:
            normal_init(self.shared_conv.conv, std=0.01)
            for pool in self.corner_pools:
                pool.init_weights()

    def forward_single(self, x: Tensor) -> tuple[Tensor, ...]:
        """Predict on one level.

        Args:
            x: ``(N, in_channels, H, W)``.

        Returns:
            In fp32: class logits ``(N, C, H, W)``; initial and refined points
            ``(N, 2 * num_points, H, W)``; corner logits ``(N, 2, H, W)`` and offsets
            ``(N, 4, H, W)``, top left first; foreground logits ``(N, C, H, W)``.
        """
        cls_feat = reg_feat = x
        for cls_conv, reg_conv in zip(self.cls_convs, self.reg_convs):
            cls_feat, reg_feat = cls_conv(cls_feat), reg_conv(reg_feat)
        shared = self.shared_conv(reg_feat)
        support = self.foreground_embedding(shared)
        cls_feat, reg_feat, corner_feat = (x + support for x in (cls_feat, reg_feat, shared))
        corners = [pool(corner_feat) for pool in self.corner_pools]
        scores, offsets = (
            torch.cat([conv(corner) for conv, corner in zip(convs, corners)], dim=1)
            for convs in (self.corner_scores, self.corner_offsets)
        )

        hidden = self.relu(self.reppoints_pts_init_conv(reg_feat))
        init = self.reppoints_pts_init_out(hidden).float()
        cls_feat, reg_feat = (
            torch.cat([feat, scores, offsets], dim=1) for feat in (cls_feat, reg_feat)
        )
        hidden = self.reppoints_cls_norm(self._gather(self.reppoints_cls_conv, cls_feat, init))
        classes = self.reppoints_cls_out(self.relu(hidden))
        hidden = self._gather(self.reppoints_pts_refine_conv, reg_feat, init)
        hidden = self.relu(self.reppoints_pts_refine_norm(hidden))
        refined = self.reppoints_pts_refine_out(hidden).float() + init.detach()
        outs = (classes, init, refined, scores, offsets, self.foreground_out(shared))
        return tuple(out.float() for out in outs)

    def _gather(self, conv: DeformConv2d, x: Tensor, points: Tensor) -> Tensor:
        """Apply a deformable convolution at the points, with a reduced gradient for the points."""
        points = (1 - self.gradient_mul) * points.detach() + self.gradient_mul * points
        # fp32, because mmcv's operator does not support bfloat16, and float16 rounds positions
        return conv(x.float(), points - self.dcn_base_offset.type_as(points))

    def points2bbox(self, pts: Tensor, y_first: bool = True) -> Tensor:
        """Convert the first two points to corners.

        Args:
            pts: ``(n, 2 * num_points, ...)``.
            y_first: Whether coordinates are (y, x).

        Returns:
            ``(n, 4, ...)`` as (x1, y1, x2, y2).
        """
        return pts[:, [1, 0, 3, 2]] if y_first else pts[:, :4]

    def decode(self, points: Tensor, pts_preds: Sequence[Tensor]) -> Tensor:
        """Turn predictions into boxes.

        Args:
            points: ``(P, 4)``.
            pts_preds: ``(N, 2 * num_points, H, W)`` for each level, P cells in total.

        Returns:
            ``(N, P, 4)``.
        """
        corners = flatten_levels([self.points2bbox(pts) for pts in pts_preds])
        xy, stride = (part.repeat(1, 2) for part in points.split(2, dim=1))
        return xy + corners * stride

    def loss_by_feat(
        self,
        cls_scores: list[Tensor],
        pts_preds_init: list[Tensor],
        pts_preds_refine: list[Tensor],
        corner_scores: list[Tensor],
        corner_offsets: list[Tensor],
        foregrounds: list[Tensor],
        batch_gt_instances: InstanceList,
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: OptInstanceList = None,
    ) -> dict[str, Tensor]:
        """Compute all losses.

        Args:
            cls_scores: For each level the first output of :meth:`forward_single`.
            pts_preds_init: The second output.
            pts_preds_refine: The third output.
            corner_scores: The fourth output.
            corner_offsets: The fifth output.
            foregrounds: The sixth output.
            batch_gt_instances: ``bboxes`` and ``labels`` of each image.
            batch_img_metas: ``pad_shape`` of each image.
            batch_gt_instances_ignore: ``bboxes`` of each image that assigners may ignore.

        Returns:
            Scalars by name.
        """
        gts = batch_gt_instances
        ignored = batch_gt_instances_ignore or [None] * len(gts)
        grid = self._make_grid(cls_scores, batch_img_metas)
        init = self.decode(grid.points, pts_preds_init)
        refined = self.decode(grid.points, pts_preds_refine)
        centers = grid.points.expand(len(gts), -1, -1)
        init_targets = self.get_targets(self.init_assigner, centers, grid, gts, ignored)
        targets = self.get_targets(self.refine_assigner, init.detach(), grid, gts, ignored)
        unit = self.point_base_scale * grid.points[:, 2:].repeat(1, 2)
        loss_heatmap, loss_offset = self._corner_losses(corner_scores, corner_offsets, grid, gts)
        return dict(
            loss_cls=self._class_loss(cls_scores, refined.detach(), targets),
            loss_pts_init=self._box_loss(self.loss_bbox_init, init / unit, init_targets, unit),
            loss_pts_refine=self._box_loss(self.loss_bbox_refine, refined / unit, targets, unit),
            loss_heatmap=loss_heatmap,
            loss_offset=loss_offset,
            loss_foreground=self._foreground_loss(foregrounds, gts),
        )

    def _make_grid(self, maps: list[Tensor], batch_img_metas: list[dict]) -> Grid:
        sizes, device = [x.shape[-2:] for x in maps], maps[0].device
        points = self.prior_generator.grid_priors(sizes, device=device, with_stride=True)
        valid = torch.stack(
            [
                torch.cat(self.prior_generator.valid_flags(sizes, meta['pad_shape'], device))
                for meta in batch_img_metas
            ]
        )
        levels = valid.split([len(level) for level in points], dim=1)
        # one tensor, so that tolist() synchronizes with the GPU once
        num_valid = torch.stack([level.sum(1) for level in levels], dim=1)
        return Grid(torch.cat(points), valid, num_valid.tolist())

    def get_targets(
        self,
        assigner: BaseAssigner,
        priors: Tensor,
        grid: Grid,
        batch_gt_instances: InstanceList,
        batch_gt_instances_ignore: OptInstanceList,
    ) -> BoxTargets:
        """Compute the targets of each point by an assigner of mmdet.

        Args:
            assigner: Assigner of points or boxes.
            priors: Points or boxes ``(N, P, 4)``.
            grid: Locations of the points.
            batch_gt_instances: ``bboxes`` and ``labels`` of each image.
            batch_gt_instances_ignore: ``bboxes`` of each image that the assigner may ignore.

        Returns:
            Targets of all images.
        """
        images = [
            self._assign_in_image(assigner, priors[i], *grid.select(i), gt, ignored)
            for i, (gt, ignored) in enumerate(zip(batch_gt_instances, batch_gt_instances_ignore))
        ]
        return BoxTargets(*map(torch.stack, zip(*images)))

    def _assign_in_image(
        self,
        assigner: BaseAssigner,
        priors: Tensor,
        valid: Tensor,
        level_sizes: list[int],
        gt: InstanceData,
        ignored: InstanceData | None,
    ) -> BoxTargets:
        with priors.device:  # PointAssigner creates indices on the default device
            result = assigner.assign(
                InstanceData(priors=priors[valid]),
                num_level_priors=level_sizes,
                gt_instances=gt,
                gt_instances_ignore=ignored,
            )
        assigned = torch.full(valid.shape, -1, device=valid.device)  # ignored
        assigned[valid] = result.gt_inds
        positive = assigned > 0
        labels = torch.full_like(assigned, self.num_classes)
        labels[positive] = gt.labels[assigned[positive] - 1]
        boxes = priors.new_zeros(len(priors), 4)
        boxes[positive] = gt.bboxes[assigned[positive] - 1]
        return BoxTargets(labels, boxes, (assigned >= 0).to(priors), positive)

    def _class_loss(self, cls_scores: list[Tensor], boxes: Tensor, targets: BoxTargets) -> Tensor:
        """Compute the classification loss; ``boxes`` ``(N, P, 4)`` are the final ones."""
        target = targets.labels.flatten()
        if isinstance(self.loss_cls, QualityFocalLoss):
            found = targets.positive
            quality = torch.zeros_like(targets.weights)
            quality[found] = bbox_overlaps(boxes[found], targets.boxes[found], is_aligned=True)
            target = (target, quality.flatten())
        scores = flatten_levels(cls_scores).flatten(0, 1)
        weight = targets.weights.flatten()
        return self.loss_cls(scores, target, weight, avg_factor=targets.avg_factor)

    def _box_loss(
        self, loss: nn.Module, boxes: Tensor, targets: BoxTargets, unit: Tensor
    ) -> Tensor:
        """Compute the loss of ``boxes`` ``(N, P, 4)`` in units ``(P, 4)`` at positive points."""
        # positive points are not selected, because an empty selection would detach the graph
        weight = targets.positive.flatten()[:, None].to(boxes).expand(-1, 4)
        target = (targets.boxes / unit).flatten(0, 1)
        return loss(boxes.flatten(0, 1), target, weight, avg_factor=targets.avg_factor)

    def _corner_losses(
        self,
        corner_scores: list[Tensor],
        corner_offsets: list[Tensor],
        grid: Grid,
        batch_gt_instances: InstanceList,
    ) -> tuple[Tensor, Tensor]:
        """Compute the losses of scores and offsets, each as the mean of both corners."""
        scores = flatten_levels(corner_scores).sigmoid().unbind(2)
        offsets = flatten_levels(corner_offsets).split(2, dim=2)
        heat, shift = self.get_corner_targets(grid, batch_gt_instances)
        heat, shift = heat.unbind(2), shift.split(2, dim=2)
        loss_heatmap = loss_offset = 0.0
        for i in range(2):
            positive = heat[i] == 1
            count = positive.sum(1).clamp(min=1).sum().item()  # at least one per image
            weight = positive[..., None].to(heat[i]).expand(-1, -1, 2)
            loss_offset += self.loss_offset(offsets[i], shift[i], weight, avg_factor=count) / 2
            weight = grid.valid.to(heat[i])
            loss_heatmap += (
                self.loss_heatmap(scores[i], heat[i], weight=weight, avg_factor=count) / 2
            )
        return loss_heatmap, loss_offset

    def get_corner_targets(
        self, grid: Grid, batch_gt_instances: InstanceList
    ) -> tuple[Tensor, Tensor]:
        """Compute the targets of :class:`CornerAssigner` for all images.

        Args:
            grid: Locations of the points; only valid ones can be nearest to a corner.
            batch_gt_instances: ``bboxes`` of each image.

        Returns:
            Heat ``(N, P, 2)`` and offsets ``(N, P, 4)``, 0 at points that are not valid.
        """
        heat = grid.points.new_zeros(*grid.valid.shape, 2)
        shift = grid.points.new_zeros(*grid.valid.shape, 4)
        for i, gt in enumerate(batch_gt_instances):
            valid, level_sizes = grid.select(i)
            heat[i, valid], shift[i, valid] = self.corner_assigner.assign(
                grid.points[valid], level_sizes, gt.bboxes
            )
        return heat, shift

    def _foreground_loss(
        self, foregrounds: list[Tensor], batch_gt_instances: InstanceList
    ) -> Tensor:
        """Compute the foreground loss on all levels; coarse levels subsample the finest target."""
        size, stride = foregrounds[0].shape[-2:], self.point_strides[0]
        finest = torch.stack(
            [
                foreground_weights(gt.bboxes, gt.labels, self.num_classes, size, stride)
                for gt in batch_gt_instances
            ]
        )
        weights = [F.interpolate(finest, size=level.shape[-2:]) for level in foregrounds]
        return self.loss_foreground(flatten_levels(foregrounds), flatten_levels(weights))

    def predict_by_feat(
        self,
        cls_scores: list[Tensor],
        pts_preds_init: list[Tensor],
        pts_preds_refine: list[Tensor],
        corner_scores: list[Tensor],
        corner_offsets: list[Tensor],
        foregrounds: list[Tensor],
        batch_img_metas: list[dict],
        **kwargs,
    ) -> InstanceList:
        """Detect objects.

        Args:
            cls_scores: For each level the first output of :meth:`forward_single`.
            pts_preds_init: The second output, not used.
            pts_preds_refine: The third output.
            corner_scores: The fourth output.
            corner_offsets: The fifth output.
            foregrounds: The sixth output, not used.
            batch_img_metas: ``img_shape`` and ``scale_factor`` of each image.
            **kwargs: Arguments of ``RepPointsHead``: ``cfg``, ``rescale`` and ``with_nms``.

        Returns:
            ``bboxes``, ``scores`` and ``labels`` of each image.
        """
        boxes = self._boxes(pts_preds_refine, corner_scores, corner_offsets, batch_img_metas)
        return super().predict_by_feat(
            cls_scores, boxes, batch_img_metas=batch_img_metas, **kwargs
        )

    def _boxes(
        self,
        pts_preds: list[Tensor],
        corner_scores: list[Tensor],
        corner_offsets: list[Tensor],
        batch_img_metas: list[dict],
    ) -> list[Tensor]:
        """Return boxes ``(N, 4, H, W)`` of each level, snapped to corners on coarse levels."""
        sizes, device = [pts.shape[-2:] for pts in pts_preds], pts_preds[0].device
        priors = self.prior_generator.grid_priors(sizes, device=device, with_stride=True)
        limits = pts_preds[0].new_tensor([meta['img_shape'][:2] for meta in batch_img_metas])
        limits = limits[:, None, [1, 0, 1, 0]]  # (N, 1, 4)
        levels = []
        for i, (points, pts) in enumerate(zip(priors, pts_preds)):
            boxes = self.decode(points, [pts]).clamp(min=0).minimum(limits)
            if i > 0:
                finer = (i - 1) // 2  # two levels share the corners of a finer one
                boxes = snap_to_corners(
                    boxes, corner_scores[finer], corner_offsets[finer], self.point_strides[finer]
                )
            levels.append(boxes.transpose(1, 2).unflatten(2, sizes[i]))
        return levels

    def _bbox_decode(
        self, points: Tensor, bbox_pred: Tensor, stride: int, max_shape: tuple[int, int]
    ) -> Tensor:
        """Clip boxes ``(n, 4)``, which are decoded already, to an image of ``max_shape``."""
        height, width = max_shape[:2]
        limits = bbox_pred.new_tensor([width, height, width, height])
        return bbox_pred.clamp(min=0).minimum(limits)

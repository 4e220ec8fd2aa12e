# SPDX-License-Identifier: Apache-2.0
"""Multi-scale and flip testing of two-stage detectors with masks.

mmdet's ``DetTTAModel`` merges final boxes and does not support masks. Here the views are merged
inside the detector, as in mmdet 2.x. First, the proposals of all views are merged. Then every view
predicts scores and boxes for these proposals; scores and boxes are averaged, and one NMS follows.
Finally, every view predicts masks for the detected boxes; the masks are averaged and pasted.

Differences from mmdet 2.x:
- Proposals are merged as in the RPN, by one NMS per pyramid level, so that a single
  unchanged view equals plain inference. mmdet 2.x applied another NMS across levels.
- HTC's masks depend on its RoI head: ``AveragedHTCRoIHead`` averages the stages as in mmdet 2.x,
  and mmdet 3's head returns those of the last stage.
- Views are flipped back here, because the hosts' ``merge_aug_masks`` indexes tensors with a
  negative step, which PyTorch does not support.
"""

from collections.abc import Sequence

import torch
from mmcv.ops import batched_nms
from mmdet.models.dense_heads import RPNHead
from mmdet.models.layers import multiclass_nms
from mmdet.models.roi_heads import CascadeRoIHead, HybridTaskCascadeRoIHead, StandardRoIHead
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi, bbox_flip, scale_boxes
from mmengine.config import ConfigDict
from mmengine.model import BaseTTAModel
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmfocal.compat import propose, run_branch

from .htc_roi_head import AveragedHTCRoIHead

_ROI_HEADS = (
    StandardRoIHead,
    CascadeRoIHead,
    HybridTaskCascadeRoIHead,
    AveragedHTCRoIHead,
)
_FLIPPED_DIMS = dict(horizontal=(-1,), vertical=(-2,), diagonal=(-2, -1))


class View:
    """A resized and optionally flipped version of an image, with its feature maps.

    The backbone processes one view at a time; only the maps of the neck (and HTC's semantic
    branch) are kept. With 256 channels in fp32 these are 100 bytes per pixel: 1.5 GB for HTC++'s
    eight views of a 4:3 image. Recomputing them would triple the time.

    Args:
        detector: Two-stage detector.
        image: (3, H, W), before normalization and padding.
        sample: Data sample with the meta information of the view.
    """

    def __init__(self, detector: nn.Module, image: Tensor, sample: DetDataSample) -> None:
        data = dict(inputs=[image], data_samples=[sample])
        data = detector.data_preprocessor(data, training=False)
        (self.sample,) = data['data_samples']
        self.meta = self.sample.metainfo
        _check_meta(self.meta)
        self.maps = detector.extract_feat(data['inputs'])
        self.semantic = {}
        if isinstance(detector.roi_head, HybridTaskCascadeRoIHead):
            with_semantic = detector.roi_head.with_semantic
            feat = detector.roi_head.semantic_head(self.maps)[1] if with_semantic else None
            self.semantic = dict(semantic_feat=feat)

    def from_image(self, boxes: Tensor) -> Tensor:
        """Map boxes (n, 4) of the original image into the view."""
        return scale_boxes(self._mirror(boxes), self.meta['scale_factor'])

    def to_image(self, boxes: Tensor) -> Tensor:
        """Map boxes (n, 4 k) of the view into the original image."""
        boxes = boxes.float()  # half precision is too coarse for coordinates
        return self._mirror(scale_boxes(boxes, [1 / s for s in self.meta['scale_factor']]))

    def unflip(self, masks: Tensor) -> Tensor:
        """Flip (..., h, w) back."""
        if not self.meta['flip']:
            return masks
        return masks.flip(_FLIPPED_DIMS[self.meta['flip_direction']])

    def _mirror(self, boxes: Tensor) -> Tensor:
        """Flip boxes within the original image; the operation is its own inverse."""
        if not self.meta['flip']:
            return boxes
        return bbox_flip(boxes, self.meta['ori_shape'], self.meta['flip_direction'])


@MODELS.register_module()
class MaskTTAModel(BaseTTAModel):
    """Test-time augmentation of Mask R-CNN, Cascade Mask R-CNN and HTC.

    Detectors without a mask head predict boxes only. Views may be resized and flipped in any
    direction, but not cropped or rotated.

    Args:
        tta_cfg: Overrides keys of the model's ``test_cfg.rcnn``:
            ``score_thr``, ``nms``, ``max_per_img``, ``mask_thr_binary``.
        **kwargs: ``module`` (the detector or its config) and ``data_preprocessor``.

    Raises:
        TypeError: If the model is another kind of detector.
        ValueError: If ``tta_cfg`` has other keys.
    """

    def __init__(self, tta_cfg: dict | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        _check_detector(self.module)
        self.rcnn_cfg = _override(self.module.roi_head.test_cfg, tta_cfg or {})

    def test_step(self, data: dict) -> list[DetDataSample]:
        """Predict every image of a batch from its views.

        Args:
            data: ``inputs`` and ``data_samples``, each a list over views of lists over images.

        Returns:
            Per image the sample of its first view with ``pred_instances``: ``bboxes`` (n, 4),
            ``scores`` (n,), ``labels`` (n,) and ``masks`` (n, H, W) of the original image.

        Raises:
            TypeError: If the pipeline has no ``TestTimeAug``.
            KeyError: If the meta information of a view is incomplete.
        """
        if isinstance(data['inputs'][0], Tensor):
            raise TypeError(
                'MaskTTAModel expects a list of images per view, got single images; '
                'end the pipeline with TestTimeAug'
            )
        predictions = []
        for images in zip(zip(*data['inputs']), zip(*data['data_samples'])):
            views = [View(self.module, image, sample) for image, sample in zip(*images)]
            predictions.extend(self.merge_preds([views]))
        return predictions

    def merge_preds(self, data_samples_list: Sequence[Sequence[View]]) -> list[DetDataSample]:
        """Predict images from their views; other TTA models get predictions instead of views.

        Args:
            data_samples_list: Views of each image.

        Returns:
            One sample per image, see ``test_step``.
        """
        merged = []
        for views in data_samples_list:
            found = self._merge_boxes(views, self._merge_proposals(views))
            if self.module.roi_head.with_mask:
                found = self._merge_masks(views, found)
            merged += self.module.add_pred_to_datasample([views[0].sample], [found])
        return merged

    def _merge_proposals(self, views: Sequence[View]) -> Tensor:
        """Merge the proposals of all views: boxes (n, 4) of the original image."""
        cfg = self.module.rpn_head.test_cfg
        found = [self._propose(view) for view in views]
        boxes, scores, levels = (torch.cat(parts) for parts in zip(*found))
        if not len(boxes):
            return boxes
        _, keep = batched_nms(boxes, scores, levels, cfg.nms)
        return boxes[keep[: cfg.max_per_img]]

    def _propose(self, view: View) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (n, 4) of the original image, scores (n,) and pyramid levels (n,)."""
        head = self.module.rpn_head
        logits, deltas = head(view.maps)
        priors = head.prior_generator.grid_priors(
            [level.shape[-2:] for level in logits], logits[0].dtype, logits[0].device
        )
        found = [
            propose(
                head, [cls[0]], [reg[0]], [None], [prior], img_meta=view.meta, cfg=head.test_cfg
            )
            for cls, reg, prior in zip(logits, deltas, priors)
        ]
        boxes = view.to_image(torch.cat([part.bboxes for part in found]))
        scores = torch.cat([part.scores for part in found]).float()
        levels = [torch.full_like(part.scores, level) for level, part in enumerate(found)]
        return boxes, scores, torch.cat(levels)

    def _merge_boxes(self, views: Sequence[View], proposals: Tensor) -> InstanceData:
        """Classify and regress the same proposals in every view, average, and apply NMS."""
        found = [self._detect(view, proposals) for view in views]
        boxes, scores = (torch.stack(parts).mean(0) for parts in zip(*found))
        cfg = self.rcnn_cfg
        boxes, labels = multiclass_nms(boxes, scores, cfg.score_thr, cfg.nms, cfg.max_per_img)
        return InstanceData(bboxes=boxes[:, :4], scores=boxes[:, 4], labels=labels)

    def _detect(self, view: View, proposals: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes (n, 4 or 4 classes) of the original image and scores (n, classes + 1)."""
        (found,) = self.module.roi_head.predict_bbox(
            view.maps,
            [view.meta],
            [InstanceData(bboxes=view.from_image(proposals))],
            rcnn_test_cfg=None,  # no NMS
            **view.semantic,
        )
        return view.to_image(found.bboxes), found.scores.float()

    def _merge_masks(self, views: Sequence[View], found: InstanceData) -> InstanceData:
        """Average every view's mask probabilities of the same boxes and paste them."""
        head = self.module.roi_head.mask_head
        head = head[-1] if isinstance(head, nn.ModuleList) else head
        probs = found.scores.new_zeros(0)
        if len(found):
            probs = torch.stack([self._segment(view, found.bboxes) for view in views]).mean(0)
        meta = dict(ori_shape=views[0].meta['ori_shape'], scale_factor=(1.0, 1.0))
        (found,) = head.predict_by_feat(
            [probs], [found], [meta], self.rcnn_cfg, rescale=True, activate_map=True
        )
        return found

    def _segment(self, view: View, boxes: Tensor) -> Tensor:
        """Return mask probabilities (n, classes or 1, h, w), averaged over the head's stages."""
        head, rois = self.module.roi_head, bbox2roi([view.from_image(boxes)])
        if isinstance(head, HybridTaskCascadeRoIHead):
            logits = run_branch(head, 'mask', -1, view.maps, rois, **view.semantic, training=False)
            logits = logits['mask_preds']
        elif isinstance(head, CascadeRoIHead):
            stages = range(head.num_stages)
            logits = [run_branch(head, 'mask', i, view.maps, rois)['mask_preds'] for i in stages]
        else:
            logits = [run_branch(head, 'mask', view.maps, rois)['mask_preds']]
        return view.unflip(torch.stack(logits).sigmoid().mean(0))


def _check_detector(detector: nn.Module) -> None:
    rpn = type(getattr(detector, 'rpn_head', None))
    roi = type(getattr(detector, 'roi_head', None))
    if rpn is not RPNHead or roi not in _ROI_HEADS:
        known = ', '.join(head.__name__ for head in _ROI_HEADS)
        raise TypeError(
            f'MaskTTAModel expects a detector with an RPNHead and one of {known}, got '
            f'{type(detector).__name__} with rpn_head {rpn.__name__} and roi_head {roi.__name__}; '
            "boxes of any detector can be merged by mmdet's DetTTAModel"
        )


def _check_meta(meta: dict) -> None:
    for key in ('ori_shape', 'scale_factor', 'flip', 'flip_direction'):
        if key not in meta:
            raise KeyError(
                f'a view of {meta.get("img_path")} has no {key!r}, found {sorted(meta)}; '
                'tta_pipeline needs Resize, RandomFlip and all of '
                'meta_keys=(..., ori_shape, scale_factor, flip, flip_direction) in PackDetInputs'
            )


def _override(test_cfg: dict, tta_cfg: dict) -> ConfigDict:
    unknown = sorted(set(tta_cfg) - set(test_cfg))
    if unknown:
        raise ValueError(f'tta_cfg: unknown keys {unknown}, expected some of {sorted(test_cfg)}')
    return ConfigDict({**test_cfg, **tta_cfg})

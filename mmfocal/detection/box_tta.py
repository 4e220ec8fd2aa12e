# SPDX-License-Identifier: Apache-2.0
"""Multi-scale and flip testing of box detectors with a range of box sizes per scale."""

from collections.abc import Sequence

from mmdet.models.test_time_augs import DetTTAModel
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample


@MODELS.register_module()
class SizeFilteredDetTTAModel(DetTTAModel):
    """``DetTTAModel`` that keeps only boxes within a size range for every test scale.

    This is ATSS's multi-scale testing (``remove_boxes`` in its ``bbox_aug_vote.py``): small scales
    detect large objects and large scales small ones. As in ATSS, sizes are measured in the resized
    image. Unlike in ATSS, boxes are merged by NMS as in mmdet, not by soft voting, and the filter
    applies to all views.

    Args:
        size_ranges: Triples ``(short, low, high)``: the short side of a scale, as in ``Resize``,
            and the smallest and largest size (square root of the area) of the boxes that are kept
            at this scale, in pixels of the resized image.
        **kwargs: Arguments of ``DetTTAModel``.
    """

    def __init__(self, size_ranges: Sequence[Sequence[float]], **kwargs) -> None:
        super().__init__(**kwargs)
        self.size_ranges = {short: (low, high) for short, low, high in size_ranges}

    def merge_preds(
        self, data_samples_list: Sequence[Sequence[DetDataSample]]
    ) -> list[DetDataSample]:
        """Remove boxes outside of the size range, then merge.

        Args:
            data_samples_list: Predictions in each view of each image.

        Returns:
            One sample per image with merged ``pred_instances``.

        Raises:
            KeyError: If the scale of a view is unknown, or a scale has no range.
        """
        for views in data_samples_list:
            for view in views:
                self._drop_unfitting(view)
        return super().merge_preds(data_samples_list)

    def _drop_unfitting(self, view: DetDataSample) -> None:
        if 'scale' not in view.metainfo:
            raise KeyError(
                f"a view of {view.get('img_path')} has no 'scale': add it to meta_keys of "
                'PackDetInputs in tta_pipeline'
            )
        short = min(view.scale)
        if short not in self.size_ranges:
            raise KeyError(
                f'tta_model.size_ranges has no scale {short}, which a view of '
                f'{view.get("img_path")} has; found {sorted(self.size_ranges)}'
            )
        low, high = self.size_ranges[short]
        boxes = view.pred_instances.bboxes * view.pred_instances.bboxes.new_tensor(
            view.scale_factor
        ).repeat(2)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        view.pred_instances = view.pred_instances[(area > low**2) & (area < high**2)]

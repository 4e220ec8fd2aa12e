# SPDX-License-Identifier: Apache-2.0
"""Run a model on an empty image and, where it has a RoI head, on empty RoIs.

The numbers of RoIs are those of mmdet 2's ``forward_dummy``, on which published FLOPs are based:
every stage of a cascade processes all RoIs.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from mmfocal.compat import run_branch

NUM_BOXES, NUM_MASKS = 1000, 100


def _rois(feats: Sequence[Tensor], count: int) -> Tensor:
    return feats[0].new_empty(count, 5)


def _run_standard(detector: nn.Module, image: Tensor) -> None:
    feats, head = detector.extract_feat(image), detector.roi_head
    detector.rpn_head(feats)
    run_branch(head, 'bbox', feats, _rois(feats, NUM_BOXES))
    if head.with_mask:
        run_branch(head, 'mask', feats, _rois(feats, NUM_MASKS))


def _run_cascade(detector: nn.Module, image: Tensor) -> None:
    feats, head = detector.extract_feat(image), detector.roi_head
    detector.rpn_head(feats)
    for stage in range(head.num_stages):
        run_branch(head, 'bbox', stage, feats, _rois(feats, NUM_BOXES))
        if head.with_mask:
            run_branch(head, 'mask', stage, feats, _rois(feats, NUM_MASKS))


def _run_htc(detector: nn.Module, image: Tensor) -> None:
    feats, head = detector.extract_feat(image), detector.roi_head
    detector.rpn_head(feats)
    semantic = head.semantic_head(feats)[1] if head.with_semantic else None
    for stage in range(head.num_stages):
        run_branch(head, 'bbox', stage, feats, _rois(feats, NUM_BOXES), semantic)
    if head.with_mask:  # as in testing, one pass runs all stages and the mask information flow
        run_branch(head, 'mask', -1, feats, _rois(feats, NUM_MASKS), semantic, training=False)


def _run_sparse(detector: nn.Module, image: Tensor) -> None:
    feats, head = detector.extract_feat(image), detector.roi_head
    objects = detector.rpn_head.init_proposal_features.weight.detach()[None]
    rois = _rois(feats, objects.shape[1])
    for stage in range(head.num_stages):
        box_feats = head.bbox_roi_extractor[stage](feats, rois)
        _, _, objects, attended = head.bbox_head[stage](box_feats, objects)
        if head.with_mask:
            run_branch(head, 'mask', stage, feats, rois[:NUM_MASKS], attended[0, :NUM_MASKS])


def _run_dense(model: nn.Module, image: Tensor) -> None:
    model(image, mode='tensor')


# By exact type of the RoI head, because subclasses may have parts that are not counted here.
RUNS = {
    'StandardRoIHead': _run_standard,
    'CascadeRoIHead': _run_cascade,
    'HybridTaskCascadeRoIHead': _run_htc,
    'AveragedHTCRoIHead': _run_htc,
    'SparseRoIHead': _run_sparse,
    'NoneType': _run_dense,
}


class Feed(nn.Module):
    """Runs the forward pass of inference without decoding; modules are named ``Feed.model``.

    Args:
        model: Detector, segmentor or classifier.

    Raises:
        ValueError: If the model has a RoI head of an unknown type.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        roi_head = type(getattr(model, 'roi_head', None)).__name__
        if roi_head not in RUNS:
            raise ValueError(
                f'{type(model).__name__} with a {roi_head} cannot be run without data; supported '
                f'RoI heads are {", ".join(name for name in RUNS if name != "NoneType")}'
            )
        self.run = RUNS[roi_head]

    def forward(self, image: Tensor) -> None:
        """Run the model.

        Args:
            image: ``(1, 3, H, W)``.

        Raises:
            ValueError: If the model fails; names it, the image's shape and the cause.
        """
        try:
            self.run(self.model, image)
        except Exception as error:
            raise ValueError(
                f'{type(self.model).__name__} cannot be run without data on an image of '
                f'{tuple(image.shape[2:])}: {type(error).__name__}: {error}'
            ) from error

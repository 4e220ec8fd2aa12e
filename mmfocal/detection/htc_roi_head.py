# SPDX-License-Identifier: Apache-2.0
"""HTC's RoI head with the masks of all stages at inference.

mmdet 2.x averaged the mask probabilities of the three stages; mmdet 3.x computes all three and
returns those of the last stage only.
"""

import torch.nn.functional as F
from mmdet.models.roi_heads import HybridTaskCascadeRoIHead
from mmdet.registry import MODELS
from torch import Tensor

from mmfocal.compat import check_base

check_base(HybridTaskCascadeRoIHead)


@MODELS.register_module()
class AveragedHTCRoIHead(HybridTaskCascadeRoIHead):
    """``HybridTaskCascadeRoIHead`` that averages the mask probabilities of all stages.

    Training, boxes and parameters are the same as in the host's class, and so are checkpoints.
    """

    def _mask_forward(
        self,
        stage: int,
        x: tuple[Tensor, ...],
        rois: Tensor,
        semantic_feat: Tensor | None = None,
        training: bool = True,
    ) -> dict[str, Tensor | list[Tensor]]:
        """Predict masks.

        Args:
            stage: In training, the stage to run. At inference, the stage whose RoI extractor is
                used for all stages.
            x: Maps of the neck.
            rois: ``(n, 5)``: index of the image, then the box in pixels.
            semantic_feat: Features of the semantic branch.
            training: Whether to run one stage; at inference, all stages run.

        Returns:
            ``mask_preds``: logits ``(n, classes or 1, h, w)`` of the stage; at inference a list
            with those of every stage, whose probabilities the host's callers average.
        """
        if training:
            return super()._mask_forward(stage, x, rois, semantic_feat, training)
        extractor = self.mask_roi_extractor[stage]
        feats = extractor(x[: extractor.num_inputs], rois)
        if self.with_semantic and 'mask' in self.semantic_fusion:
            semantic = self.semantic_roi_extractor([semantic_feat], rois)
            feats = feats + F.adaptive_avg_pool2d(semantic, feats.shape[-2:])
        logits, flow = [], None
        for head in self.mask_head:
            found, last = head(feats, flow)
            logits.append(found)
            flow = last if self.mask_info_flow else None
        return dict(mask_preds=logits)

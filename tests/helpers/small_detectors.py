# SPDX-License-Identifier: Apache-2.0
"""Small detectors of mmdet's configs on the nano backbone, and views of an image for them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.hub import get_config
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.nn import functional as F

HOSTS = {
    'mask-rcnn': 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'cascade': 'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    'htc': 'mmdet::htc/htc_r50_fpn_1x_coco.py',
    'htc-without-semantic': 'mmdet::htc/htc-without-semantic_r50_fpn_1x_coco.py',
    'faster-rcnn': 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'retinanet': 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    'sparse-rcnn': 'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py',
}
ROOT = Path(__file__).resolve().parents[2]


def _shrink(node: dict | list) -> None:
    """Make a detector of mmdet's configs small, in place."""
    widths = ('in_channels', 'out_channels', 'feat_channels', 'conv_out_channels')
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, (dict, list)):
            _shrink(value)
        elif key in widths and value == 256:
            node[key] = 16
        elif key in ('fc_out_channels', 'num_classes'):
            node[key] = {1024: 32, 80: 5, 183: 7}[value]


def build(name: str, **test_cfg) -> nn.Module:
    """Put a small detector with random weights, but distinct scores, on the nano backbone.

    ``averaged-`` before an HTC's name gives it the head that averages its stages' masks.
    """
    host = name.removeprefix('averaged-')
    model = get_config(HOSTS[host]).model
    if host != name:
        model.roi_head.type = 'AveragedHTCRoIHead'
    _shrink(model)
    model.backbone = Config.fromfile(ROOT / 'configs/_base_/backbones/focal_nano.py').backbone
    model.backbone.arch.depths = (1, 1, 1, 1)
    model.neck.in_channels = [32, 64, 128, 256]
    if 'rcnn' in model.test_cfg and 'nms' in model.test_cfg.rcnn:
        model.test_cfg.rpn.max_per_img = 30
        model.test_cfg.rcnn.update(test_cfg)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(model).eval()
    for name, param in model.named_parameters():
        for part, std in dict(rpn_cls=0.2, fc_cls=1, conv_logits=0.5, fc_reg=0.3).items():
            if f'{part}.weight' in name:
                nn.init.normal_(param, std=std)
    return model


def blobs() -> np.ndarray:
    """Draw a colored image, (96, 128, 3)."""
    image = F.interpolate(torch.rand(1, 3, 12, 16) * 255, (96, 128), mode='bicubic')
    return image[0].clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()


def view(scale: float = 1.0, flip: str | None = None) -> list[dict]:
    flipping = dict(prob=1.0, direction=flip) if flip else dict(prob=0.0)
    return [
        dict(type='mmdet.Resize', scale_factor=scale, keep_ratio=True),
        dict(type='mmdet.RandomFlip', **flipping),
        dict(type='mmdet.PackDetInputs'),
    ]


def load(image: np.ndarray, steps: list[dict]) -> dict:
    """Send an image through a pipeline."""
    return Compose([dict(type='mmdet.LoadImageFromNDArray'), *steps])(dict(img=image, img_id=0))


def collate(*images: np.ndarray, views: Sequence[list[dict]]) -> dict:
    """Make a batch as MMEngine's loader does from ``TestTimeAug``."""
    loaded = [[load(image, steps) for steps in views] for image in images]
    return pseudo_collate(
        [{key: [one[key] for one in image] for key in image[0]} for image in loaded]
    )

# SPDX-License-Identifier: Apache-2.0
"""Except for its backbone, each method is the host library's, with the differences named here.

A difference is ``key: (here, host)``; None says that the key is absent.
"""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hub import get_config

from tests.helpers.config_suite import backbone_maps, build_meta, differences, load

TRAINING = ('optim_wrapper', 'param_scheduler', 'train_cfg', 'auto_scale_lr')
DATA = ('train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator', 'test_evaluator')
MODEL = ('model',)

AMP = {'optim_wrapper.type': ('AmpOptimWrapper', 'OptimWrapper')}
WARMUP = {'param_scheduler.0.end': (500, 1000)}
FOCAL_WIDTHS = {'model.neck.in_channels': ([96, 192, 384, 768], [256, 512, 1024, 2048])}

# our config, the host's config, compared keys, differences
PAIRS = {
    'Mask R-CNN 1x': (
        'detection/focal_t_maskrcnn_1x',
        'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py',
        (*MODEL, *TRAINING, *DATA),
        {**AMP, **WARMUP},
    ),
    'Mask R-CNN 3x': (
        'detection/focal_t_maskrcnn_3x',
        'mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_amp-ms-crop-3x_coco.py',
        (*MODEL, *TRAINING, *DATA),
        WARMUP,
    ),
    'RetinaNet': (
        'detection/focal_t_retinanet_1x',
        'mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py',
        (*MODEL, 'param_scheduler', 'train_cfg', *DATA),  # its optimizer is SGD
        {},
    ),
    'Cascade Mask R-CNN': (
        'detection/focal_t_cascade_3x',
        'mmdet::convnext/cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py',
        (*MODEL, 'param_scheduler', 'train_cfg', *DATA),  # its learning rate decays by layer
        {
            **WARMUP,
            # the same heads by another name, see test_box_heads_are_the_same_modules
            **{
                f'model.roi_head.bbox_head.{stage}.{key}': values
                for stage in range(3)
                for key, values in dict(
                    type=('Shared4Conv1FCBBoxHead', 'ConvFCBBoxHead'),
                    conv_out_channels=(None, 256),
                    num_shared_convs=(None, 4),
                    num_shared_fcs=(None, 1),
                ).items()
            },
        },
    ),
    'ATSS': (
        'detection/focal_t_atss_3x',
        'mmdet::atss/atss_r50_fpn_1x_coco.py',
        (*MODEL, 'val_dataloader'),
        {
            'model.neck.in_channels': ([192, 384, 768], [256, 512, 1024, 2048]),
            'model.neck.start_level': (0, 1),  # ResNet's first map is given, but not used
        },
    ),
    'Sparse R-CNN': (
        'detection/focal_t_sparsercnn_3x',
        'mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_300-proposals_crop-ms-480-800-3x_coco.py',
        (*MODEL, *TRAINING, *DATA),
        FOCAL_WIDTHS,
    ),
    'HTC': (
        'detection/focal_t_htcpp_3x',
        'mmdet::htc/htc_r50_fpn_1x_coco.py',
        MODEL,
        {
            **FOCAL_WIDTHS,
            'model.roi_head.type': ('AveragedHTCRoIHead', 'HybridTaskCascadeRoIHead'),
            'model.data_preprocessor.pad_mask': (True, None),
            'model.test_cfg.rcnn.nms.type': ('soft_nms', 'nms'),
            # stated here, MaxIoUAssigner's default there
            'model.train_cfg.rpn.assigner.match_low_quality': (True, None),
            **{
                f'model.train_cfg.rcnn.{stage}.assigner.match_low_quality': (True, None)
                for stage in range(3)
            },
        },
    ),
    'DyHead': (
        'detection/focal_l_dyhead_2x',
        'mmdet::dyhead/atss_swin-l-p4-w12_fpn_dyhead_ms-2x_coco.py',
        (*MODEL, *TRAINING, *DATA),
        AMP,
    ),
    'UperNet 512': (
        'segmentation/focal_t_upernet_160k',
        'mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py',
        (*MODEL, *TRAINING, *DATA),
        {
            'auto_scale_lr.base_batch_size': (16, None),
            'auto_scale_lr.enable': (False, None),
        },
    ),
    'UperNet 640': (
        'segmentation/focal_l_upernet_640_160k',
        'mmseg::swin/swin-large-patch4-window7-in22k-pre_upernet_8xb2-160k_ade20k-512x512.py',
        (*MODEL, 'optim_wrapper', 'param_scheduler', 'train_cfg'),
        {'model.data_preprocessor.size': ([640, 640], [512, 512])},
    ),
    'UperNet 640 data': (
        'segmentation/focal_l_upernet_640_160k',
        'mmseg::_base_/datasets/ade20k_640x640.py',
        ('train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator'),
        {'train_dataloader.batch_size': (2, 4)},
    ),
    'classification': (
        'classification/focal_t_in1k',
        'mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py',
        (*MODEL, *TRAINING, *DATA, 'data_preprocessor'),
        {
            'optim_wrapper.type': ('AmpOptimWrapper', None),
            'param_scheduler.1.begin': (0, 20),
            'param_scheduler.1.T_max': (300, None),
            'param_scheduler.1.convert_to_iter_based': (True, None),
        },
    ),
}


def read_host(address: str) -> Config:
    package, _, path = address.partition('::')
    if package != 'mmseg':
        return get_config(address)
    # the hub looks for mmseg by the name of the original distribution, which may be absent
    mmseg = pytest.importorskip('mmseg')
    return Config.fromfile(Path(mmseg.__file__).parent / '.mim' / 'configs' / path)


@pytest.mark.parametrize('method', PAIRS)
def test_nothing_but_the_backbone_differs(method):
    name, address, keys, expected = PAIRS[method]
    ours, host = load(name), read_host(address)
    for cfg in (ours, host):
        cfg.get('model', {}).pop('backbone', None)
        cfg.get('model', {}).pop('pretrained', None)
    assert differences(ours, host, keys) == expected


def test_box_heads_are_the_same_modules():
    host = read_host(PAIRS['Cascade Mask R-CNN'][1])
    ours = load('detection/focal_t_cascade_3x')
    host.model.backbone = ours.model.backbone
    ours, host = (str(build_meta(cfg)) for cfg in (ours, host))
    assert ours.replace('Shared4Conv1FCBBoxHead', 'ConvFCBBoxHead') == host


def test_htcpp_variant_differs_by_the_box_heads_alone():
    plain, variant = (load(f'detection/focal_l_htcpp{part}_3x') for part in ('', '_4conv1fc'))
    changed = differences(variant, plain)
    assert all(key.startswith('model.roi_head.bbox_head.') for key in changed), changed
    for head in variant.model.roi_head.bbox_head:
        assert head.type == 'Shared4Conv1FCBBoxHead' and head.norm_cfg.type == 'SyncBN'
        assert head.reg_class_agnostic and head.reg_decoded_bbox
        assert (head.loss_bbox.type, head.loss_bbox.loss_weight) == ('GIoULoss', 10.0)


def test_dyhead_variant_differs_by_window_and_weights():
    changed = differences(*(load(f'detection/focal_l_dyhead{part}_2x') for part in ('', '_w12')))
    assert changed.keys() == {'model.backbone.window_size', 'model.backbone.init_cfg.checkpoint'}
    assert changed['model.backbone.window_size'] == (None, 12)


@pytest.mark.parametrize('method', ['retinanet_1x', 'atss_3x', 'reppointsv2_3x'])
def test_box_detectors_see_the_last_three_maps(method):
    assert len(backbone_maps(f'detection/focal_t_{method}')) == 3

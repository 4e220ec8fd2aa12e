# SPDX-License-Identifier: Apache-2.0
"""Settings that do not fit together, or not to the data, are named by file and key."""

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from mmfocal.engine import InputError, check_inputs, check_run, check_widths, read_config
from mmfocal.engine.checks.settings import check_schedule
from mmfocal.engine.findings import Findings

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
MASK_RCNN = 'quickstart/focal_nano_maskrcnn.py'
UPERNET = 'quickstart/focal_nano_upernet.py'
CLASSIFIER = 'quickstart/focal_nano_cls.py'
HTC = 'quickstart/focal_nano_htcpp.py'
DYHEAD = 'quickstart/focal_nano_dyhead.py'
EPOCHS = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=1)
BY_EPOCH = dict(_delete_=True, by_epoch=True, max_epochs=1)
WARMUP = dict(type='LinearLR', start_factor=0.1, begin=0, end=3)


def shipped() -> list:
    """All shipped configs; quickstart has every method, so the others are slow."""
    paths = sorted(CONFIGS.rglob('*.py'))
    names = [str(path.relative_to(CONFIGS)) for path in paths if '_base_' not in path.parts]
    return [
        pytest.param(name, marks=[] if name.startswith('quickstart/') else pytest.mark.slow)
        for name in names
    ]


def load(name: str, options: dict | None = None) -> Config:
    """A shipped config with options as on the command line."""
    cfg = read_config(CONFIGS / name)
    cfg.merge_from_dict(options or {})
    return cfg


def with_two_classes(model: dict, root: Path) -> Config:
    """A model and validation data of two classes, whose file is empty."""
    (root / 'a.png').touch()
    (root / 'a.json').write_text(json.dumps({}))
    dataset = dict(
        type='CocoDataset',
        data_root=str(root),
        ann_file='a.json',
        metainfo=dict(classes=('zero', 'one')),
    )
    return Config(dict(default_scope='mmdet', model=model, val_dataloader=dict(dataset=dataset)))


def refusal(name: str, options: dict) -> str:
    """The error message without the path of the config, which comes first."""
    with pytest.raises(ValueError) as error:
        check_widths(load(name, options))
    file, message = str(error.value).split(': ', 1)
    assert file == str(CONFIGS / name)
    return message


@pytest.mark.parametrize('name', shipped())
def test_shipped_configs_fit(name):
    check_widths(load(name))


@pytest.mark.parametrize(
    ('package', 'name'),
    [
        ('mmdet', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'),
        ('mmdet', 'swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py'),
        ('mmdet', 'swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py'),
        ('mmdet', 'convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py'),
        ('mmdet', 'faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py'),  # a shared head, no neck
        ('mmdet', 'faster_rcnn/faster-rcnn_r50-caffe-dc5_1x_coco.py'),
        ('mmdet', 'htc/htc_r50_fpn_1x_coco.py'),
        ('mmdet', 'dyhead/atss_swin-l-p4-w12_fpn_dyhead_ms-2x_coco.py'),
        ('mmdet', 'yolo/yolov3_d53_8xb8-ms-608-273e_coco.py'),  # widths listed backwards
        ('mmdet', 'detectors/cascade-rcnn_r50-rfp_1x_coco.py'),  # the image itself is an output
        ('mmdet', 'ssd/ssd300_coco.py'),
        ('mmdet', 'detr/detr_r50_8xb2-150e_coco.py'),
        # takes the last map, and does not run on the meta device
        ('mmdet', 'centernet/centernet_r18-dcnv2_8xb16-crop512-140e_coco.py'),
        ('mmdet', 'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'),
        ('mmdet', 'yolox/yolox_s_8xb8-300e_coco.py'),
        ('mmdet', 'dcnv2/mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py'),
        ('mmpretrain', 'resnet/resnet50_8xb32_in1k.py'),
        ('mmpretrain', 'swin_transformer/swin-base_16xb64_in1k-384px.py'),
        ('mmpretrain', 'vision_transformer/vit-base-p16_32xb128-mae_in1k.py'),
        ('mmpretrain', 'mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py'),
        ('mmseg', 'pspnet/pspnet_r50-d8_4xb4-160k_ade20k-512x512.py'),
        ('mmseg', 'ocrnet/ocrnet_hr18_4xb4-160k_ade20k-512x512.py'),  # two heads in a row
        ('mmseg', 'sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py'),
    ],
)
def test_the_hosts_configs_fit(package, name):
    module = pytest.importorskip(package)
    check_widths(Config.fromfile(Path(module.__file__).parent / '.mim' / 'configs' / name))


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        (
            MASK_RCNN,
            {'model.backbone.out_indices': (1, 2, 3)},
            'model.neck.in_channels=[32, 64, 128, 256] does not fit model.backbone '
            '(FocalTransformer, out_indices=(1, 2, 3)), which gives [64, 128, 256] channels',
        ),
        (
            MASK_RCNN,
            {'model.backbone.arch': 'tiny'},
            'model.neck.in_channels=[32, 64, 128, 256] does not fit model.backbone '
            '(FocalTransformer, out_indices=(0, 1, 2, 3)), which gives [96, 192, 384, 768] '
            'channels',
        ),
        (
            MASK_RCNN,
            {'model.rpn_head.in_channels': 128},
            'model.rpn_head.in_channels=128 does not fit model.neck (FPN), which gives '
            '[64, 64, 64, 64] channels',
        ),
        (
            MASK_RCNN,
            {'model.roi_head.mask_roi_extractor.featmap_strides': [4, 8, 16, 32, 64]},
            'model.roi_head.mask_roi_extractor.out_channels=64, featmap_strides=[4, 8, 16, 32, 64]'
            ' does not fit model.neck (FPN), which gives [64, 64, 64, 64] channels',
        ),
        (
            MASK_RCNN,
            {'model.roi_head.bbox_head.in_channels': 256},
            'model.roi_head.bbox_head.in_channels=256 does not fit '
            'model.roi_head.bbox_roi_extractor.out_channels=64',
        ),
        (
            HTC,
            {'model.roi_head.semantic_head.num_ins': 3},
            'model.roi_head.semantic_head.in_channels=64, num_ins=3 does not fit model.neck (FPN)',
        ),
        (
            HTC,
            {'model.roi_head.mask_head.1.in_channels': 65},
            'model.roi_head.mask_head.1.in_channels=65 does not fit '
            'model.roi_head.mask_roi_extractor.out_channels=64',
        ),
        (
            DYHEAD,
            {'model.neck.0.in_channels': [32, 64, 128]},
            'model.neck.0.in_channels=[32, 64, 128] does not fit model.backbone ',
        ),
        (
            DYHEAD,
            {'model.neck.1.in_channels': 65},
            'model.neck.1.in_channels=65 does not fit model.neck.0 (FPN), which gives [64, 64, 64',
        ),
        (
            UPERNET,
            {'model.decode_head.in_index': [0, 1, 2, 4]},
            'model.decode_head.in_channels=[32, 64, 128, 256], in_index=[0, 1, 2, 4] does not fit '
            'model.backbone (FocalTransformer, out_indices=(0, 1, 2, 3)), which gives '
            '[32, 64, 128, 256] channels',
        ),
        (
            UPERNET,
            {'model.auxiliary_head.in_index': 3},
            'model.auxiliary_head.in_channels=128, in_index=3 does not fit model.backbone ',
        ),
        (
            CLASSIFIER,
            {'model.backbone.out_indices': (2,)},
            'model.head.in_channels=256 does not fit model.neck (GlobalAveragePooling), which '
            'gives [128] channels',
        ),
        (
            MASK_RCNN,
            {'model.backbone.out_indices': (0, 1, 2, 4)},
            'model.backbone (FocalTransformer) cannot be built: ValueError(',
        ),
        (
            MASK_RCNN,
            {'model.backbone.drop_path_rat': 0.3},
            'model.backbone (FocalTransformer) cannot be built: TypeError("FocalTransformer'
            ".__init__() got an unexpected keyword argument 'drop_path_rat'\"); the nearest "
            'argument is drop_path_rate',
        ),
        (
            MASK_RCNN,
            {'model.backbone.type': 'FocalTransfomer'},
            "model.backbone.type='FocalTransfomer' is not registered; did you mean FocalTransf",
        ),
    ],
)
def test_misfits_are_refused(name, options, message):
    assert refusal(name, options).startswith(message)


def test_any_registered_backbone_is_asked():
    @MODELS.register_module(force=True)
    class TwoConvs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3)])
            self.steps = [step.item() for step in torch.linspace(0, 1, 2)]  # as Swin does

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            first = self.convs[0](x)
            return first, self.convs[1](first)

    backbone = dict(_delete_=True, type='TwoConvs')
    try:
        message = refusal(MASK_RCNN, {'model.backbone': backbone})
        assert '(TwoConvs, out_indices=None), which gives [8, 12] channels' in message
        check_widths(
            load(MASK_RCNN, {'model.backbone': backbone, 'model.neck.in_channels': [8, 12]})
        )
    finally:
        MODELS.module_dict.pop('TwoConvs')


def test_nothing_is_left_behind():
    check_widths(load(MASK_RCNN))
    assert nn.Linear(2, 2).weight.device.type == 'cpu'
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ('model', 'key'),
    [
        (dict(roi_head=dict(bbox_head=[dict(num_classes=80)])), 'roi_head.bbox_head.0'),
        (dict(decode_head=dict(num_classes=3)), 'decode_head'),
    ],
)
def test_heads_have_as_many_classes_as_the_data(tmp_path, model, key):
    cfg = with_two_classes(model, tmp_path)
    with pytest.raises(ValueError) as error:
        check_inputs(cfg, ['val'])
    found = {'roi_head.bbox_head.0': 80, 'decode_head': 3}[key]
    assert (
        f'model.{key}.num_classes={found}, but val_dataloader.dataset.metainfo has 2 classes: '
        'zero, one\n'
    ) in str(error.value)


@pytest.mark.parametrize(
    'model',
    [
        dict(bbox_head=dict(num_classes=2), rpn_head=dict(num_classes=1)),
        dict(roi_head=dict(semantic_head=dict(num_classes=183))),
        dict(backbone=dict(num_classes=1000)),
        dict(auxiliary_head=[dict(num_classes=2), dict(type='STDCHead', num_classes=1)]),
        dict(bbox_head=dict(num_classes=256), language_model=dict()),
    ],
)
def test_other_numbers_of_classes_are_free(tmp_path, model):
    cfg = with_two_classes(model, tmp_path)
    with pytest.raises(ValueError, match=r"a\.json has no 'images'"):  # what is looked at next
        check_inputs(cfg, ['val'])


def test_batch_of_one_image_is_an_error_of_trainings_only():
    cfg = load('quickstart/focal_nano_upernet.py', {'train_dataloader.batch_size': 1})
    with pytest.raises(ValueError, match=r'train_dataloader\.batch_size=1: batch norm in'):
        check_widths(cfg)
    check_widths(cfg, trains=False)


def schedule_errors(cfg: Config) -> list[str]:
    findings = Findings()
    check_schedule(cfg, findings)
    return findings.errors


def changed(options: dict[str, Any]) -> Config:
    """The classifier's config, by iterations, with other settings."""
    cfg = copy.deepcopy(classifier())
    for key, value in options.items():
        if key == 'param_scheduler':  # a list
            cfg[key] = value
        else:
            cfg.merge_from_dict({key: value})
    return cfg


@cache
def classifier() -> Config:
    return read_config(CONFIGS / CLASSIFIER)


@pytest.mark.parametrize('name', shipped())
def test_shipped_schedules_pass(name):
    assert not schedule_errors(read_config(CONFIGS / name))


@pytest.mark.parametrize(
    ('package', 'name'),
    [
        ('mmdet', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'),
        ('mmdet', 'common/lsj-200e_coco-detection.py'),
        ('mmdet', 'soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py'),
        ('mmdet', 'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'),  # by iterations
        ('mmdet', 'yolox/yolox_s_8xb8-300e_coco.py'),  # convert_to_iter_based
        ('mmseg', 'pspnet/pspnet_r50-d8_4xb4-160k_ade20k-512x512.py'),
        ('mmpretrain', 'resnet/resnet50_8xb32_in1k.py'),
        ('mmpretrain', 'swin_transformer/swin-base_16xb64_in1k-384px.py'),
        ('mmpretrain', 'mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py'),
        ('mmpretrain', 'blip/blip-base_8xb32_caption.py'),  # train_cfg without type and by_epoch
    ],
)
def test_the_hosts_schedules_pass(package, name):
    module = pytest.importorskip(package)
    path = Path(module.__file__).parent / '.mim' / 'configs' / name
    assert not schedule_errors(Config.fromfile(path, import_custom_modules=False))


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ({'train_cfg': EPOCHS}, ["sampler.type='InfiniteSampler' never ends", "'DefaultSampler'"]),
        ({'train_cfg': BY_EPOCH}, ["sampler.type='InfiniteSampler' never ends"]),
        (
            {'train_cfg': EPOCHS, 'train_dataloader.sampler.type': 'mmdet.MultiSourceSampler'},
            ["sampler.type='MultiSourceSampler' never ends"],
        ),
        (
            {'default_hooks.checkpoint.by_epoch': True},
            [
                'checkpoint.by_epoch=True with an iteration-based loop',
                'by_epoch=False, interval=100',
            ],
        ),
        (
            {'default_hooks.checkpoint': dict(_delete_=True, type='CheckpointHook', interval=1)},
            ['checkpoint.by_epoch=True (the default)', 'by_epoch=False, interval=60'],
        ),
        (
            {'default_hooks': dict(_delete_=True)},
            ['checkpoint.by_epoch=True (the default)', "dict(checkpoint=dict(type='CheckpointH"],
        ),
        (
            {'custom_hooks': [dict(type='CheckpointHook', interval=50)]},
            ['custom_hooks.0.by_epoch=True (the default)', 'custom_hooks.0.interval=50'],
        ),
        (
            {'param_scheduler.1.by_epoch': True},
            ['param_scheduler.1.by_epoch=True (CosineAnnealingLR)', 'param_scheduler.1.by_epoch='],
        ),
        (
            {'param_scheduler': WARMUP},
            ['param_scheduler.by_epoch=True (the default) (LinearLR)', 'by_epoch=False'],
        ),
        (
            {'param_scheduler': dict(generator=[WARMUP])},
            ['param_scheduler.generator.0.by_epoch=True (the default)'],
        ),
        (
            {'param_scheduler.0.convert_to_iter_based': True},
            ['param_scheduler.0.convert_to_iter_based=True converts epochs, but by_epoch=False'],
        ),
        (
            {'default_hooks.checkpoint.intervall': 50},
            ["checkpoint.intervall=50: CheckpointHook has no argument 'intervall'; ", ' interval'],
        ),
        ({'optim_wrapper.optimizer.type': 'AdamV'}, ['did you mean Adam']),
        (
            {'custom_hooks': [dict(type='CheckpointHook', max_keep=1)]},
            ['custom_hooks.0.max_keep=1: ', 'the nearest argument is max_keep_ckpts'],
        ),
    ],
)
def test_other_units_are_refused(options: dict[str, Any], words):
    findings = Findings()
    check_schedule(changed(options), findings)
    with pytest.raises(InputError) as error:
        findings.report()
    assert all(word in str(error.value) for word in words), error.value


def test_trainings_are_checked():
    with pytest.raises(InputError, match='never ends'):
        check_run(changed({'train_cfg': EPOCHS}), ())


@pytest.mark.parametrize(
    'options',
    [
        {'train_cfg': EPOCHS, 'train_dataloader.sampler.type': 'DefaultSampler'},  # by iterations
        {'train_dataloader.sampler.type': 'DefaultSampler'},
        {'param_scheduler': dict(WARMUP, convert_to_iter_based=True)},
        {'param_scheduler': dict(type='ReduceOnPlateauLR', monitor='accuracy/top1')},
        {'param_scheduler': []},
        {'param_scheduler': None},
        {'default_hooks.checkpoint.by_epoch': True, 'default_hooks.checkpoint.interval': -1},
        {'default_hooks.checkpoint': None},
        {'custom_hooks': [dict(type='CheckpointHook')]},  # interval -1: the last one only
        {'train_cfg': None},
    ],
)
def test_units_that_mmengine_supports_pass(options):
    assert not schedule_errors(changed(options))

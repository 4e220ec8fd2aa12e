# SPDX-License-Identifier: Apache-2.0
"""Loop, sampler, checkpoints and schedulers that count in other units are named before a run."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from mmfocal.engine import InputError, check_run, read_config
from mmfocal.engine.checks.schedule import check_schedule
from mmfocal.engine.findings import Findings

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
EPOCHS = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=1)
BY_EPOCH = dict(_delete_=True, by_epoch=True, max_epochs=1)
WARMUP = dict(type='LinearLR', start_factor=0.1, begin=0, end=3)


def shipped() -> list:
    """All shipped configs; quickstart has every method, so the others are slow."""
    names = [path for path in sorted(CONFIGS.rglob('*.py')) if '_base_' not in path.parts]
    marks = {True: [], False: [pytest.mark.slow]}
    return [
        pytest.param(path, marks=marks['quickstart' in path.parts], id=path.stem) for path in names
    ]


def errors(cfg: Config) -> list[str]:
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
    return read_config(CONFIGS / 'quickstart/focal_nano_cls.py')


@pytest.mark.parametrize('path', shipped())
def test_shipped_configs_pass(path):
    assert not errors(read_config(path))


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
def test_the_hosts_configs_pass(package, name):
    module = pytest.importorskip(package)
    path = Path(module.__file__).parent / '.mim' / 'configs' / name
    assert not errors(Config.fromfile(path, import_custom_modules=False))


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
            ['checkpoint.by_epoch=True with a loop by iterations', 'by_epoch=False, interval=100'],
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
    assert not errors(changed(options))

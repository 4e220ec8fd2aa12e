# SPDX-License-Identifier: Apache-2.0
"""Every shipped config loads and builds; the schedules are those of the published recipes."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope
from torch import nn

import mmfocal
from mmfocal.engine import adapt_to_machine, machine, read_config

ROOT = Path(__file__).resolve().parents[2] / 'configs'
CONFIGS = sorted(
    str(path.relative_to(ROOT)) for path in ROOT.rglob('*.py') if '_base_' not in path.parts
)
COCO = ['detection/focal_t_maskrcnn_1x.py', 'detection/focal_t_maskrcnn_3x.py']


def load(name: str) -> Config:
    return Config.fromfile(ROOT / name)


def build(cfg: Config) -> nn.Module:
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model)


def decays(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Weight decay of every parameter, by name."""
    monkeypatch.setattr(machine, 'get_device', lambda: 'cpu')
    adapt_to_machine(cfg)
    model = build(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        groups = build_optim_wrapper(model, cfg.optim_wrapper).param_groups
    decay = {id(param): group['weight_decay'] for group in groups for param in group['params']}
    return {name: decay[id(param)] for name, param in model.named_parameters()}


def test_the_suite_sees_the_configs():
    assert Counter(name.split('/')[0] for name in CONFIGS) == dict(
        classification=1, detection=3, quickstart=4, segmentation=1
    )


@pytest.mark.parametrize('name', CONFIGS)
def test_config_builds_and_widths_agree(name):
    cfg = load(name)
    model = build(cfg).eval()
    with torch.no_grad():
        outputs = model.backbone(torch.zeros(1, 3, 64, 96))
    widths = [output.shape[1] for output in outputs]
    part = next(
        cfg.model[key]
        for key in ('neck', 'decode_head', 'head')
        if 'in_channels' in cfg.model.get(key, {})
    )
    assert widths == list(torch.as_tensor(part.in_channels).reshape(-1).tolist())
    assert cfg.auto_scale_lr.base_batch_size > 0
    assert cfg.default_hooks.visualization is not None


@pytest.mark.skipif(
    not (Path(mmfocal.__file__).parent / '.mim').exists(),
    reason='mmfocal is not installed: pip install --no-deps -e .',
)
@pytest.mark.parametrize(
    'name',
    [COCO[0], 'segmentation/focal_t_upernet_160k.py', 'quickstart/focal_nano_cls.py'],
)
def test_configs_serve_as_bases_of_other_projects(name, tmp_path):
    mine = tmp_path / 'mine.py'
    mine.write_text(f"_base_ = 'mmfocal::{name}'\n")
    cfg = read_config(mine)
    assert cfg.to_dict() == load(name).to_dict()
    assert type(build(cfg).backbone) is mmfocal.FocalTransformer


def test_the_pretrained_file_comes_from_the_environment(monkeypatch):
    monkeypatch.delenv('FOCAL_T_CKPT', raising=False)
    default = load(COCO[0]).model.backbone.init_cfg
    assert default == dict(
        type='FocalPretrained', checkpoint='checkpoints/focal-tiny-is224-ws7.pth'
    )
    monkeypatch.setenv('FOCAL_T_CKPT', '/elsewhere/my.pth')
    for name in [*COCO, 'segmentation/focal_t_upernet_160k.py']:
        assert load(name).model.backbone.init_cfg.checkpoint == '/elsewhere/my.pth'


@pytest.mark.parametrize(
    ('name', 'epochs', 'milestones'), [(COCO[0], 12, [8, 11]), (COCO[1], 36, [27, 33])]
)
def test_coco_schedule(name, epochs, milestones, monkeypatch):
    cfg = load(name)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 1e-4, 0.05)
    assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.train_cfg.max_epochs == epochs
    warmup, steps = cfg.param_scheduler
    assert (warmup.end, warmup.start_factor, warmup.by_epoch) == (500, 0.001, False)
    assert (steps.milestones, steps.end, steps.gamma) == (milestones, epochs, 0.1)
    backbone = cfg.model.backbone
    assert backbone.drop_path_rate == 0.2
    assert backbone.focal_windows == (15, 13, 9, 7) and backbone.expand_sizes == (3, 3, 3, 3)
    for param, decay in decays(cfg, monkeypatch).items():
        free = 'norm' in param or 'relative_position_bias_table' in param
        assert decay == (0 if free else 0.05), param


def test_coco_augmentation():
    once, thrice = (load(name).train_dataloader.dataset.pipeline for name in COCO)
    assert [step.type for step in once][2:4] == ['Resize', 'RandomFlip']
    assert tuple(once[2].scale) == (1333, 800)
    (choice,) = (step for step in thrice if step.type == 'RandomChoice')
    plain, cropped = choice.transforms
    assert [short for short, _ in plain[0].scales] == list(range(480, 801, 32))
    assert [step.type for step in cropped] == [
        *('RandomChoiceResize', 'RandomCrop', 'RandomChoiceResize'),
    ]
    assert tuple(cropped[1].crop_size) == (384, 600)


def test_imagenet_schedule(monkeypatch):
    cfg = load('classification/focal_t_in1k.py')
    assert cfg.optim_wrapper.clip_grad.max_norm == 5.0
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.weight_decay) == (1e-3, 0.05)
    assert 16 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 1024
    backbone = cfg.model.backbone
    assert backbone.init_cfg is None and backbone.drop_path_rate == 0.2
    assert backbone.focal_windows == (7, 5, 3, 1) and backbone.expand_sizes == (3, 3, 3, 0)
    assert sum(param.numel() for param in build(cfg).parameters()) == 28_880_380
    for param, decay in decays(cfg, monkeypatch).items():
        free = 'norm' in param or 'relative_position_bias_table' in param
        free = free or param.endswith('bias')
        assert decay == (0 if free else 0.05), param


def test_imagenet_learning_rate_is_the_released_codes():
    """timm's cosine over all 300 epochs, of which a linear warm-up replaces the first 20."""
    cfg = load('classification/focal_t_in1k.py')
    length = 10  # iterations per epoch
    param = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([param], lr=1e-3)
    schedulers = []
    for scheduler in cfg.param_scheduler:
        settings = {k: v for k, v in scheduler.items() if k != 'convert_to_iter_based'}
        cls = PARAM_SCHEDULERS.get(settings.pop('type'))
        schedulers.append(
            cls.build_iter_from_epoch(optimizer=optimizer, epoch_length=length, **settings)
        )
    found = []
    for _ in range(300 * length):
        found.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    assert found[0] == pytest.approx(1e-6)
    for iteration in range(20 * length, 300 * length, 97):
        cosine = (1 + math.cos(math.pi * iteration / (300 * length))) / 2
        assert found[iteration] == pytest.approx(1e-5 + (1e-3 - 1e-5) * cosine, rel=2e-3)


def test_ade20k_schedule(monkeypatch):
    cfg = load('segmentation/focal_t_upernet_160k.py')
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.weight_decay) == (6e-5, 0.01)
    assert 8 * cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 16
    warmup, poly = cfg.param_scheduler
    assert (warmup.end, warmup.start_factor) == (1500, 1e-6)
    assert (poly.begin, poly.end, poly.power, poly.eta_min) == (1500, 160000, 1.0, 0.0)
    assert cfg.train_cfg.max_iters == 160000
    assert cfg.model.backbone.drop_path_rate == 0.3
    assert cfg.model.decode_head.num_classes == cfg.model.auxiliary_head.num_classes == 150
    assert cfg.model.auxiliary_head.in_index == 2
    views = cfg.tta_pipeline[-1].transforms
    assert [tuple(view.scale) for view in views[0]] == [
        *((1024, 256), (1536, 384), (2048, 512)),
        *((2560, 640), (3072, 768), (3584, 896)),
    ]
    for param, decay in decays(cfg, monkeypatch).items():
        free = 'norm' in param or 'relative_position_bias_table' in param
        assert decay == (0 if free else 0.01), param


def test_quickstart_twins_differ_by_the_backbone_alone():
    focal, swin = (
        load(f'quickstart/{name}_nano_maskrcnn.py').to_dict() for name in ('focal', 'swin')
    )
    widths = [cfg['model'].pop('backbone') for cfg in (focal, swin)]
    assert widths[0]['arch'] == {
        key: widths[1][key] for key in ('embed_dims', 'depths', 'num_heads')
    }
    assert widths[0]['drop_path_rate'] == widths[1]['drop_path_rate']
    for key in ('backbone', 'custom_imports'):
        focal.pop(key)
    assert focal == swin


@pytest.mark.parametrize('name', [name for name in CONFIGS if name.startswith('quickstart/')])
def test_digits_are_never_mirrored(name):
    cfg = load(name)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert 'Flip' not in str(loader)
    assert 'Flip' not in str(cfg.get('tta_pipeline'))


def test_overfitting_sees_the_same_pictures_unchanged():
    cfg = load('detection/focal_t_maskrcnn_overfit.py')
    train, test = (loader.dataset for loader in (cfg.train_dataloader, cfg.test_dataloader))
    for pipeline in (train.pipeline, test.pipeline):
        assert [step.type for step in pipeline] == [
            *('LoadImageFromFile', 'LoadAnnotations', 'Resize', 'PackDetInputs'),
        ]
    assert train.ann_file == test.ann_file and train.data_prefix == test.data_prefix

# SPDX-License-Identifier: Apache-2.0
"""Optimizers, precision, batches, regularization and seeds are those of the published recipes."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from mmcv.cnn.bricks import DropPath
from mmengine.dataset import DefaultSampler
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import set_random_seed
from mmpretrain.models.utils.batch_augments import Mixup

from mmfocal.engine import adapt_to_machine, machine
from tests.helpers.config_suite import (
    CONFIGS,
    ROOT,
    ROWS,
    differences,
    has_masks,
    load,
    meta_model,
    method_of,
    words,
)
from tests.helpers.processes import run_in_processes


class Recipe(NamedTuple):
    """GPUs, images per GPU, learning rate, weight decay, gradient clipping, mixed precision."""

    gpus: int = 8
    images: int = 2
    lr: float = 1e-4
    decay: float = 0.05
    clip: float | None = None
    amp: bool = True


RECIPES = dict(
    retinanet=Recipe(),
    maskrcnn=Recipe(),
    fasterrcnn=Recipe(),
    cascade=Recipe(),
    atss=Recipe(),
    reppointsv2=Recipe(),
    sparsercnn=Recipe(lr=2.5e-5, decay=1e-4, clip=1.0, amp=False),
    htcpp=Recipe(gpus=16, images=1, decay=0.1),
    dyhead=Recipe(lr=5e-5),
    upernet=Recipe(lr=6e-5, decay=0.01, amp=False),
    in1k=Recipe(gpus=16, images=64, lr=1e-3, clip=5.0),
    in22k=Recipe(gpus=32, images=128, lr=1e-3, decay=0.01, clip=5.0),
)
R50 = Recipe(lr=0.01, decay=1e-4, clip=35, amp=False)

DROP_PATH = dict(
    detection=dict(t=0.2, s=0.3, b=0.5, l=0.2),
    segmentation=dict(t=0.3, s=0.3, b=0.3, l=0.3),
    classification=dict(t=0.2, s=0.3, b=0.5, l=0.2),
)

# parameters of dense models that are not decayed, with numbers as #
UNDECAYED = {
    *(
        f'backbone.{module}.{kind}'
        for module in (
            *('patch_embed.norm', 'norm#'),
            *('layers.#.blocks.#.norm#', 'layers.#.downsample.norm'),
            *('stages.#.blocks.#.norm#', 'stages.#.downsample.norm'),  # Swin
        )
        for kind in ('weight', 'bias')
    ),
    'backbone.layers.#.blocks.#.attn.relative_position_bias_table',
    'backbone.layers.#.blocks.#.attn.relative_position_bias_table_to_neighbors',
    'backbone.layers.#.blocks.#.attn.relative_position_bias_table_to_windows.#',
    'backbone.stages.#.blocks.#.attn.w_msa.relative_position_bias_table',  # Swin
    # DyHead
    *(
        f'neck.#.dyhead_blocks.#.spatial_conv_{which}.norm.{kind}'
        for which in ('high', 'mid', 'low')
        for kind in ('weight', 'bias')
    ),
}


def recipe_of(name: str) -> Recipe:
    return R50 if words(name)[0] == 'r50' else RECIPES[method_of(name)]


def decays(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Weight decay of every parameter, by name."""
    monkeypatch.setattr(machine, 'get_device', lambda: 'cpu')
    cfg = load(name)
    adapt_to_machine(cfg)  # mixed precision needs a GPU
    model = meta_model(name)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        groups = build_optim_wrapper(model, cfg.optim_wrapper).param_groups
    decay = {id(param): group['weight_decay'] for group in groups for param in group['params']}
    return {name: decay[id(p)] for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize('name', ROWS)
def test_optimizer_and_batch(name):
    cfg, recipe = load(name), recipe_of(name)
    wrapper = cfg.optim_wrapper
    assert wrapper.optimizer.type == ('SGD' if recipe is R50 else 'AdamW')
    assert tuple(wrapper.optimizer.get('betas', (0.9, 0.999))) == (0.9, 0.999)
    assert (wrapper.optimizer.lr, wrapper.optimizer.weight_decay) == (recipe.lr, recipe.decay)
    assert (wrapper.get('clip_grad') or {}).get('max_norm') == recipe.clip
    assert wrapper.type == ('AmpOptimWrapper' if recipe.amp else 'OptimWrapper')
    assert 'loss_scale' not in wrapper  # AmpOptimWrapper's own, which is dynamic
    assert 'accumulative_counts' not in wrapper
    assert cfg.train_dataloader.batch_size == recipe.images
    assert not cfg.auto_scale_lr.get('enable', False)


@pytest.mark.parametrize('name', CONFIGS)
def test_learning_rates_are_scaled_from_the_real_batch(name):
    cfg, gpus = load(name), recipe_of(name).gpus if name in ROWS else 1
    assert cfg.auto_scale_lr.base_batch_size == gpus * cfg.train_dataloader.batch_size


@pytest.mark.parametrize('name', [name for name in ROWS if recipe_of(name) is not R50])
def test_what_is_not_decayed(name, monkeypatch):
    found = {True: set(), False: set()}
    for param, decay in decays(name, monkeypatch).items():
        assert decay in (0.0, recipe_of(name).decay)
        found[decay == 0].add(re.sub(r'\d+', '#', param))
    kinds = found[True] | found[False]
    if name.startswith('classification'):
        one_dimensional = ('bias', 'norm.weight', 'norm#.weight')
        expected = {
            kind
            for kind in kinds
            if kind.endswith(one_dimensional) or '.relative_position_bias_table' in kind
        }
    else:
        expected = set() if method_of(name) == 'sparsercnn' else UNDECAYED & kinds
    assert found[True] == expected
    assert found[False] == kinds - expected


def test_every_undecayed_kind_exists(monkeypatch):
    names = ('detection/focal_l_dyhead_2x', 'detection/ablations/swin_t_maskrcnn_1x')
    names += ('detection/focal_t_maskrcnn_1x',)
    kinds = {re.sub(r'\d+', '#', param) for name in names for param in decays(name, monkeypatch)}
    assert kinds >= UNDECAYED


@pytest.mark.parametrize('name', [name for name in ROWS if recipe_of(name) is not R50])
def test_regularization_and_checkpointing(name):
    backbone = load(name).model.backbone
    task, (_, size, *_) = name.split('/')[0], words(name)
    assert backbone.drop_path_rate == DROP_PATH[task][size]
    recompute = method_of(name) in ('htcpp', 'dyhead', 'in22k')
    assert backbone.get('with_cp', False) is recompute
    if task == 'classification':
        assert backbone.get('init_cfg') is None


@pytest.mark.parametrize('name', [name for name in ROWS if words(name)[1] in 'sb'])
def test_sizes_differ_in_nothing_else(name):
    folder, stem = name.rsplit('/', 1)
    tiny = '_'.join([words(stem)[0], 't', *words(stem)[2:]])
    allowed = ('model.backbone.arch', 'model.backbone.init_cfg', 'model.backbone.drop_path_rate')
    allowed += ('model.neck.in_channels', 'model.decode_head.in_channels')
    allowed += ('model.auxiliary_head.in_channels', 'model.head.in_channels')
    changed = differences(load(name), load(f'{folder}/{tiny}'))
    assert 'model.backbone.arch' in changed
    assert all(key.startswith(allowed) for key in changed), changed


def test_names_of_sizes_have_one_source():
    configs = [path for path in ROOT.rglob('*.py') if '_base_' not in path.parts]
    assert [path for path in configs if re.search(r"\barch='", path.read_text())] == []


def test_classification_regularizes_as_the_released_code():
    cfg = load('classification/focal_t_in1k')
    mixup, cutmix = cfg.model.train_cfg.augments
    assert (mixup.type, mixup.alpha, cutmix.type, cutmix.alpha) == ('Mixup', 0.8, 'CutMix', 1.0)
    assert (cfg.model.head.loss.type, cfg.model.head.loss.label_smooth_val) == (
        *('LabelSmoothLoss', 0.1),
    )


@pytest.mark.parametrize('name', CONFIGS)
def test_initial_weights_can_be_overridden(name):
    cfg, init_cfg = load(name), dict(type='SwinPretrained', checkpoint='swin.pth')
    cfg.merge_from_dict({f'model.backbone.init_cfg.{key}': init_cfg[key] for key in init_cfg})
    merged = dict(cfg.model.backbone.init_cfg)
    assert {**merged, **init_cfg} == merged


def test_choices_have_one_tag():
    lines = [(path, line) for path in ROOT.rglob('*.py') for line in path.read_text().splitlines()]
    choices = [(path, line) for path, line in lines if re.search(r'\bchoices?\b', line, re.I)]
    assert len(choices) > 20
    assert [found for found in choices if not re.match(r' *# choice: ', found[1])] == []


@pytest.mark.parametrize('name', CONFIGS)
def test_runs_repeat_and_are_validated(name):
    cfg = load(name)
    assert (cfg.randomness.seed, cfg.randomness.diff_rank_seed) == (0, True)
    assert cfg.default_hooks.visualization is not None
    if name.endswith('_in22k'):  # there is no validation set
        assert cfg.val_dataloader is None and cfg.val_cfg is None and cfg.val_evaluator is None
        return
    assert cfg.train_cfg.val_interval > 0
    metrics = dict(mmdet='CocoMetric', mmseg='IoUMetric', mmpretrain='Accuracy')
    assert cfg.val_evaluator.type == metrics[cfg.default_scope]
    if cfg.default_scope == 'mmdet':
        metric = cfg.val_evaluator.metric
        metric = [metric] if isinstance(metric, str) else metric
        assert list(metric) == (['bbox', 'segm'] if has_masks(cfg) else ['bbox'])


def _draw(rank: int, folder: Path) -> None:
    """Save the numbers that one rank draws for its batch, twice from the start."""
    found = []
    for _ in range(2):
        set_random_seed(**load('classification/focal_t_in1k').randomness)
        sampler = DefaultSampler(range(100), shuffle=True, seed=None)  # as the runner builds it
        images, scores = Mixup(alpha=0.8)(torch.rand(4, 3, 8, 8), torch.eye(4))
        dropped = DropPath(0.5).train()(torch.ones(64, 1))
        found.append(dict(order=list(sampler), images=images, scores=scores, dropped=dropped))
    torch.save(found, folder / f'{rank}.pth')


def test_ranks_draw_different_numbers_and_repeat(tmp_path):
    run_in_processes(_draw, tmp_path, tmp_path)
    first, second = (torch.load(tmp_path / f'{rank}.pth') for rank in (0, 1))
    for once, again in (first, second):
        assert once['order'] == again['order']
        assert all(once[key].equal(again[key]) for key in ('images', 'scores', 'dropped'))
    assert sorted(first[0]['order'] + second[0]['order']) == list(range(100))
    for key in ('images', 'scores', 'dropped'):
        assert not first[0][key].equal(second[0][key]), f'{key} equal on both ranks'

# SPDX-License-Identifier: Apache-2.0
"""Layer-wise decay reaches every parameter of detectors, segmentors and classifiers."""

import pytest
from mmengine.optim import build_optim_wrapper

from mmfocal.engine import LayerDecayOptimWrapperConstructor  # registers it
from mmfocal.errors import InputError
from tests.helpers.config_suite import build, load


def groups(cfg, **options):
    model = build(cfg)
    wrapper = dict(
        type='OptimWrapper',
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
        constructor=LayerDecayOptimWrapperConstructor.__name__,
        paramwise_cfg=dict(options),
    )
    found = build_optim_wrapper(model, wrapper).optimizer.param_groups
    names = {id(param): name for name, param in model.named_parameters()}
    return {names[id(param)]: group for group in found for param in group['params']}, model


@pytest.mark.parametrize('task', ['retinanet', 'upernet', 'cls'])
def test_each_layer_learns_more_slowly_than_the_next(task):
    keys = dict(bias_table=dict(decay_mult=0.0), decode_head=dict(lr_mult=2.0))
    found, model = groups(
        load(f'quickstart/focal_nano_{task}'), layer_decay_rate=0.5, custom_keys=keys
    )
    assert set(found) == {name for name, _ in model.named_parameters()}
    for name, group in found.items():
        depth, count = model.backbone.get_layer_depth(name, 'backbone.')
        boost = 2 if name.startswith('decode_head') else 1
        assert group['lr'] == boost * 0.5 ** (count - 1 - depth), name
        assert group['weight_decay'] == (0 if 'bias_table' in name else 0.05), name
    assert found['backbone.patch_embed.proj.weight']['lr'] == 0.5**9  # 8 blocks and the heads
    assert found['backbone.layers.3.blocks.1.attn.qkv.weight']['lr'] == 0.5


def test_frozen_parts_and_bad_settings():
    cfg = load('quickstart/focal_nano_cls')
    cfg.model.backbone.frozen_stages = 1
    found, _ = groups(cfg, layer_decay_rate=0.9)
    assert not any(name.startswith('backbone.layers.0') for name in found)
    for rate in (None, 0, 1.5):
        with pytest.raises(InputError, match='layer_decay_rate'):
            groups(cfg, layer_decay_rate=rate)
    cfg.model.backbone = dict(type='mmdet.ResNet', depth=18)
    with pytest.raises(TypeError, match='ImageClassifier has no backbone with get_layer_depth'):
        groups(cfg, layer_decay_rate=0.9)

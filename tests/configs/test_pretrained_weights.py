# SPDX-License-Identifier: Apache-2.0
"""Every dense config starts from the classifier that it names, through the hosts' loading too.

Width is reduced to an eighth; windows, depths, heads and tables are the config's.
"""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import initialize
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from tests.helpers.config_suite import ROWS, load, words

DENSE = [
    name for name in ROWS if not name.startswith('classification') and words(name)[0] != 'r50'
]
CHANNELS = 4  # of each head; 32 in the configs
DEPTHS = dict(tiny=(2, 2, 6, 2), small=(2, 2, 18, 2), base=(2, 2, 18, 2), large=(2, 2, 18, 2))
HEADS = dict(tiny=3, small=3, base=4, large=6)
# Classifiers, released or to be trained, that checkpoints come from if not from an ablation.
CLASSIFIERS = {
    **{f'focal-{size}': f'focal_{size[0]}_in1k' for size in ('tiny', 'small', 'base')},
    'focal-large': 'focal_l_in22k',
    'swin': 'ablations/swin_t_in1k',  # mmpretrain's, in the config's size
}
_seen: set[str] = set()  # backbones that were loaded


def classifier_of(name: str) -> str:
    """Return the classification config that trains the checkpoint of a dense config."""
    checkpoint = load(name).model.backbone.init_cfg.checkpoint
    if match := re.fullmatch(r'work_dirs/(\w+)/epoch_300\.pth', checkpoint):
        return f'classification/ablations/{match[1]}'
    (found,) = (
        config for stem, config in CLASSIFIERS.items() if Path(checkpoint).name.startswith(stem)
    )
    return f'classification/{found}'


def narrow(backbone: Config) -> Config:
    """The backbone with few channels."""
    arch = backbone.arch
    if isinstance(arch, str):
        arch = dict(depths=DEPTHS[arch], num_heads=[HEADS[arch] * 2**i for i in range(4)])
    backbone.arch = dict(arch, embed_dims=CHANNELS * arch['num_heads'][0])
    backbone.with_cp = False
    return backbone


def build(backbone: Config, scope: str) -> nn.Module:
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(backbone)


def classifier_backbone(name: str) -> Config:
    """Backbone of the classifier that a dense config starts from."""
    classifier, dense = load(classifier_of(name)).model.backbone, load(name).model.backbone
    if dense.get('window_size') == 12:  # the classifier at 384 pixels, which has no config
        classifier.window_size = 12
    if words(name)[0] == 'swin' and isinstance(dense.arch, str):
        classifier.arch = dense.arch
    return narrow(classifier)


def save(backbone: Config, path: Path) -> dict[str, torch.Tensor]:
    """Write a classifier's checkpoint in which every tensor has a different value."""
    state = build(backbone, 'mmpretrain').state_dict()
    for value, tensor in enumerate(state.values(), 1):
        if tensor.is_floating_point():
            tensor.fill_(value / 64)
    torch.save(dict(state_dict={f'backbone.{key}': state[key] for key in state}), path)
    return state


def key_of(name: str) -> str:
    """Configs with the same key load the same weights into the same backbone."""
    backbone = load(name).model.backbone
    settings = {k: v for k, v in backbone.items() if k not in ('drop_path_rate', 'init_cfg')}
    return repr((settings, classifier_of(name)))


@pytest.mark.parametrize('name', DENSE)
def test_weights_of_the_classifier_arrive(name, tmp_path):
    cfg = load(name)
    backbone = narrow(cfg.model.backbone)
    if key_of(name) in _seen:
        pytest.skip('another config has the same backbone and classifier')
    is_swin = words(name)[0] == 'swin'
    path = tmp_path / 'epoch_300.pth'
    classifier = classifier_backbone(name)
    source = save(classifier, path)
    backbone.init_cfg.checkpoint = str(path)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(backbone)
        initialize(model, backbone.init_cfg)  # without MMEngine's list of every parameter
    found = model.state_dict()
    expand = classifier.get('expand_sizes', (3, 3, 3, 0))
    fresh = {
        key
        for key in set(found) - set(source)
        if not (key.endswith('_to_neighbors') and expand[int(key.split('.')[1])] == 0)
    }
    assert all(re.match(r'norm[012]\.', key) for key in fresh), 'not in the classifier'
    for key in set(source) & set(found):
        if key.endswith('relative_position_index'):
            continue
        expected = source[key].flatten()[0]
        if 'pool_layers' in key and found[key].shape != source[key].shape:
            expected = source[key].sum() / found[key].numel()  # resizing keeps the sum
        if key.startswith('norm') and not is_swin:  # of the output: starts fresh
            expected = torch.tensor(float(key.endswith('weight')))
        torch.testing.assert_close(found[key], expected.expand_as(found[key]), msg=key)
    _seen.add(key_of(name))

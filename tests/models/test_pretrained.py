# SPDX-License-Identifier: Apache-2.0
"""Checkpoints load completely, resized where geometry differs, or raise a clear error."""

import io
import logging
import os
import pickle
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import MODELS, WEIGHT_INITIALIZERS
from torch import Tensor, nn

from mmfocal import FocalTransformer
from mmfocal.engine import add_common_arguments, load_config
from mmfocal.errors import InputError
from mmfocal.models.pretrained import (
    FocalPretrained,
    backbone_part,
    convert_upstream,
    load_whole_model,
    match,
    read_checkpoint,
    resize_coarse,
    resize_neighbors,
    resize_pool,
    resize_window,
    tensors_of,
)
from mmfocal.ops.focal_attention import FocalBias, FocalGeometry
from mmfocal.ops.focal_attention.bias import combined_bias
from tests.helpers.golden import (
    GOLDEN_DIR,
    GOLDEN_NAMES,
    golden_backbone,
    golden_backbone_cfg,
    load_golden,
)

ARCH = dict(embed_dims=8, depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 2))
# what the dense configs have
DENSE = dict(focal_windows=(15, 13, 9, 7), expand_sizes=(3, 3, 3, 3))
NEIGHBORS = 'attn.relative_position_bias_table_to_neighbors'
COARSE = 'attn.relative_position_bias_table_to_windows.0'


def upstream_state(classes: int = 5, **cfg) -> dict[str, Tensor]:
    """Parameters and index buffers as a released classification file has them."""
    model = FocalTransformer(**{'arch': ARCH, 'out_indices': (3,), **cfg})
    for name, parameter in model.named_parameters():
        if 'norm' in name or name.endswith('bias') or name.endswith('bias_table'):
            nn.init.normal_(parameter)  # values of 0 or 1 could agree by chance
    state = {
        f'norm.{key[6:]}' if key.startswith('norm3.') else key: value
        for key, value in model.state_dict().items()
    }
    width = model.num_features[-1]
    state |= {'head.weight': torch.randn(classes, width), 'head.bias': torch.randn(classes)}
    state['layers.0.blocks.0.attn.relative_position_index'] = torch.zeros(49, 49, dtype=torch.long)
    state['layers.0.blocks.0.attn.relative_position_index_0'] = torch.zeros(49, 49)
    state['layers.0.blocks.0.attn.valid_ind_rolled'] = torch.arange(132)
    state['layers.0.blocks.0.attn_mask'] = torch.zeros(64, 49, 49)
    return state


NUM_BUFFERS = 4


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., str]:
    """Save an object and return the file's name."""

    def save_file(content: object, name: str = 'file.pth') -> str:
        torch.save(content, tmp_path / name)
        return str(tmp_path / name)

    return save_file


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Output of MMEngine's logger."""
    handler = logging.StreamHandler(io.StringIO())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield handler.stream
    logger.removeHandler(handler)


def load(checkpoint: str, allow_pickle: bool = False, **cfg) -> FocalTransformer:
    """Build a backbone and initialize it as a runner does."""
    model = FocalTransformer(
        **{'arch': ARCH, **cfg},
        init_cfg=dict(type='FocalPretrained', checkpoint=checkpoint, allow_pickle=allow_pickle),
    )
    model.init_weights()
    return model.eval()


def summary(log: io.StringIO) -> str:
    (line,) = [line for line in log.getvalue().splitlines() if ': loaded ' in line]
    return line


# ---- released files ----------------------------------------------------------------------------


def test_is_registered_in_the_root_registry():
    assert WEIGHT_INITIALIZERS.get('FocalPretrained') is FocalPretrained


def test_classifier_takes_everything_but_the_head(save, log):
    state = upstream_state()
    model = load(save({'model': state}), out_indices=(3,))
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key.replace('norm3.', 'norm.')]), key
    parameters = len(model.state_dict())
    assert f'loaded {parameters}, resized 0, fresh 0, ignored {2 + NUM_BUFFERS}' in summary(log)


def test_dense_model_resizes_and_starts_fresh_what_the_file_lacks(save, log):
    state = upstream_state()
    model = load(save(state), **DENSE)
    found = model.state_dict()
    assert torch.equal(found[f'layers.0.blocks.0.{COARSE}'].isnan(), torch.zeros(1, 441).bool())
    for stage, side in enumerate((21, 19, 15, 13)):
        key = f'layers.{stage}.blocks.0.{COARSE}'
        assert torch.equal(found[key], resize_coarse(state[key], side))
    same = [key for key in state if key in found and found[key].shape == state[key].shape]
    assert all(torch.equal(found[key], state[key]) for key in same)
    fresh = found[f'layers.3.blocks.0.{NEIGHBORS}']
    assert 0.015 < fresh.std() < 0.025
    line = summary(log)
    assert f'loaded {len(same)}, resized 5 (' in line
    assert f'layers.2.blocks.*.{COARSE} (2, 81) -> (2, 225)' in line
    assert 'fresh 9 (' in line and f'layers.3.blocks.*.{NEIGHBORS}' in line
    assert f'ignored {4 + NUM_BUFFERS}' in line


@pytest.mark.parametrize('arch', ['tiny', 'small', 'base'])
def test_released_sizes(arch):
    with torch.device('meta'):
        state = upstream_state(1000, arch=arch)
        dense, classifier = (
            FocalTransformer(arch, **DENSE),
            FocalTransformer(arch, out_indices=(3,)),
        )
    heads, depths = dense.arch_zoo[arch]['num_heads'], dense.depths
    for stage, entries in enumerate((169, 121, 81, 49)):  # the released files' shapes
        block = f'layers.{stage}.blocks.{depths[stage] - 1}.'
        assert state[block + COARSE].shape == (heads[stage], entries)
        assert state[f'{block}attn.relative_position_bias_table'].shape == (169, heads[stage])
        neighbors = state.get(block + NEIGHBORS)
        assert (neighbors is None) if stage == 3 else neighbors.shape == (1, heads[stage], 49, 132)

    copied, resized, fresh = match(state, dense, arch)
    assert len(resized) == sum(depths) and all(key.endswith(COARSE) for key in resized)
    assert len(fresh) == 8 + depths[3]
    assert copied.keys() | resized.keys() | set(fresh) == dense.state_dict().keys()
    copied, resized, fresh = match(state, classifier, arch)
    assert copied.keys() == classifier.state_dict().keys() and not resized and not fresh


@pytest.mark.parametrize('name', GOLDEN_NAMES)
def test_true_released_files(save, log, name):
    golden = load_golden(GOLDEN_DIR / f'{name}.pt')
    cfg = golden_backbone_cfg(golden['config'])
    path = save({'model': golden['state_dict']})
    model = load(path, **cfg, out_indices=(3,))
    assert 'resized 0, fresh 0, ignored 2' in summary(log)
    expected, _ = golden_backbone(golden, out_indices=(3,))
    for key, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    dense = load(path, **{**cfg, 'window_size': 8, 'focal_windows': (9, 7, 5, 3)})
    assert all(out.isfinite().all() for out in dense(torch.randn(1, 3, 72, 88)))


# ---- containers and prefixes -------------------------------------------------------------------


@pytest.mark.parametrize('prefix', ['', 'module.', 'backbone.', 'module.backbone.', 'net.0.'])
@pytest.mark.parametrize('container', [None, 'model', 'state_dict'])
def test_containers_and_prefixes(save, prefix, container):
    source = FocalTransformer(ARCH)
    state = {prefix + key: value for key, value in source.state_dict().items()}
    if prefix not in ('', 'module.'):
        state |= {'neck.conv.weight': torch.ones(1), 'bbox_head.norm.bias': torch.ones(1)}
    model = load(save({container: state, 'epoch': 3} if container else state))
    for key, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_two_backbones_are_refused(save):
    state = FocalTransformer(ARCH).state_dict()
    both = {
        f'{who}.{key}': value for who in ('teacher', 'student') for key, value in state.items()
    }
    with pytest.raises(ValueError, match=r"found 2 \['teacher\.', 'student\.'\]"):
        load(save(both))


def training_checkpoint() -> dict:
    """A checkpoint of MMEngine with log buffers, NumPy scalars and optimizer state."""
    model = FocalTransformer(ARCH)
    hub = MessageHub('checkpoint-test')
    hub.update_scalar('train/loss', 1.5)
    hub.update_scalar('val/top1', np.float64(3))
    hub.update_info('iter', 3)
    optimizer = torch.optim.AdamW(model.parameters())
    return dict(
        meta=dict(epoch=1, cfg='model = 1', ap=np.float32(1), ids=np.arange(3)),
        message_hub=hub.state_dict(),
        optimizer=optimizer.state_dict(),
        state_dict={f'backbone.{key}': value for key, value in model.state_dict().items()},
    )


def test_training_checkpoint_needs_no_opt_in(save):
    path = save(training_checkpoint())
    content = read_checkpoint(path)
    assert content['message_hub']['log_scalars']['train/loss'].mean() == 1.5
    assert content['meta']['ap'] == 1 and content['meta']['ids'].tolist() == [0, 1, 2]
    load(path)


def test_address(save, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    saved = FocalTransformer(ARCH).state_dict()
    loaded = load(f'{Path(save(saved)).as_uri()}#unverified').state_dict()
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[key], saved[key]) for key in saved)


# ---- refusals ----------------------------------------------------------------------------------


def test_missing_file_says_how_to_go_on(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        load(str(tmp_path / 'absent.pth'))
    message = str(caught.value)
    assert 'absent.pth' in message and 'no longer public' in message
    for way in ('FOCAL_T_CKPT=', 'focal_t_in1k.py', 'model.backbone.init_cfg=None'):
        assert way in message


@pytest.mark.parametrize('keep', [0, 10, 1000, -20])
def test_truncated_file(save, keep):
    path = Path(save(FocalTransformer(ARCH).state_dict()))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r'file\.pth is damaged'):
        load(str(path))


def test_file_that_is_no_checkpoint(tmp_path):
    path = tmp_path / 'page.pth'
    path.write_text('<html>404</html>')
    with pytest.raises(ValueError, match=r'page\.pth is damaged .* not a PyTorch checkpoint'):
        load(str(path))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ([1, 2], 'expected a dict, found list'),
        ({'epoch': 3, 'best': 0.5}, r"holds no tensors; found the keys \['epoch', 'best'\]"),
        (
            {'conv1.weight': torch.ones(64, 3, 7, 7), 'fc.bias': torch.ones(9)},
            r'expected one Focal Transformer .*found 0 .*conv1\.weight \(64, 3, 7, 7\)',
        ),
    ],
)
def test_unrelated_file(save, content, message):
    with pytest.raises(ValueError, match=message):
        load(save(content))


def test_foreign_classes_are_refused_unless_allowed(save):
    path = save({'model': upstream_state(), 'config': Namespace(lr=1)})
    with pytest.raises(ValueError, match=r'argparse\.Namespace.*allow_pickle=True'):
        load(path)
    load(path, allow_pickle=True)


class Payload:
    """Unpickling it would call a function."""

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.target,)


def test_refused_file_runs_no_code(save, tmp_path):
    payload = Payload()
    payload.target = str(tmp_path / 'made')
    with pytest.raises(ValueError, match=r'posix\.mkdir'):
        load(save({'model': upstream_state(), 'config': payload}))
    assert not (tmp_path / 'made').exists()


class Lookup:
    """Unpickling it would look up an attribute."""

    def __reduce__(self) -> tuple:
        return getattr, (Tensor, '__init__')


def test_look_ups_are_limited_to_log_buffers(save):
    with pytest.raises(ValueError, match=r'builtins\.getattr'):
        load(save({'model': upstream_state(), 'config': Lookup()}))


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        (
            dict(arch=dict(ARCH, depths=(1, 1, 4, 1))),
            'the file has 4 blocks in stage 2, the model 2',
        ),
        (
            dict(arch=dict(ARCH, depths=(1, 1, 1, 1))),
            'the file has 1 blocks in stage 2, the model 2',
        ),
        (dict(arch=dict(ARCH, embed_dims=16)), 'the file has 16 embed_dims, the model 8'),
        (
            dict(arch=dict(ARCH, num_heads=(1, 2, 2, 2))),
            'the file has 2 heads in stage 1, the model 1',
        ),
        (dict(use_conv_embed=True), r'patch_embed\.proj\.weight \(8, 3, 7, 7\)'),
        (dict(qkv_bias=False), r'expected but not in the file: .*qkv\.bias \(24,\)'),
        (dict(layer_scale_init=1.0), r'in the file but not in the model: .*gamma_1 \(8,\)'),
        (dict(focal_levels=(3, 2, 2, 2)), r'not in the model: .*pool_layers\.1\.weight \(1, 9\)'),
        (dict(pool_method='none'), r'expected but not in the file: .*pool_layers\.0'),
        (dict(abs_pos_embed_size=8), r'not in the model: absolute_pos_embed \(1, 64, 8\)'),
    ],
)
def test_other_model_is_refused_and_nothing_changes(save, cfg, message):
    path = save(upstream_state(**cfg))
    model = FocalTransformer(ARCH)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        FocalPretrained(path)(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    'lost',
    [
        'layers.1.downsample.proj.weight',
        f'layers.2.blocks.1.{COARSE}',
        f'layers.0.blocks.2.{NEIGHBORS}',
        'norm.bias',
    ],
)
def test_file_with_a_gap_is_refused(save, lost):
    arch = dict(ARCH, depths=(3, 1, 2, 1))
    state = upstream_state(arch=arch)
    del state[lost]
    with pytest.raises(ValueError, match='expected but not in the file'):
        load(save(state), arch=arch, out_indices=(3,))


def test_initializer_of_another_module_is_refused(save):
    with pytest.raises(TypeError, match='FocalTransformer, got Linear'):
        FocalPretrained(save(upstream_state()))(nn.Linear(1, 1))


# ---- resizing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'cfg',
    [
        DENSE,
        dict(focal_windows=(3, 3, 1, 1)),
        dict(window_size=14, expand_sizes=(3, 3, 3, 0)),
        dict(window_size=12, expand_sizes=(5, 3, 2, 6)),
        dict(window_size=(4, 5, 6, 7), expand_sizes=(1, 2, 3, 0)),
        dict(expand_sizes=(0, 2, 4, 3)),
        dict(expand_sizes=(7, 1, 5, 0)),
    ],
)
def test_other_geometry_loads_and_runs(save, log, cfg):
    model = load(save(upstream_state()), **cfg)
    outs = model(torch.randn(1, 3, 72, 88))
    assert all(out.isfinite().all() for out in outs)
    assert 'resized 0' not in summary(log)


def test_expand_can_be_switched_off(save, log):
    load(save(upstream_state()), expand_sizes=(0, 0, 0, 0))
    assert 'resized 0, fresh 8' in summary(log)
    assert f'ignored {4 + 4 + NUM_BUFFERS}' in summary(log)


@pytest.mark.parametrize(('expand_layer', 'stages'), [('even', '[012]'), ('odd', '2')])
def test_tables_of_blocks_that_did_not_expand_start_fresh(save, log, expand_layer, stages):
    load(save(upstream_state(expand_layer=expand_layer)))
    assert f'layers.{stages}.blocks.*.{NEIGHBORS}' in summary(log).split(' fresh ')[1]


def test_neighbors_with_gaps_start_fresh(save, log):
    load(save(upstream_state(expand_sizes=(5, 3, 3, 0))))
    assert f'layers.0.blocks.*.{NEIGHBORS}' in summary(log).split(' fresh ')[1]


def test_same_geometry_is_the_identity(save):
    source = FocalTransformer(ARCH, **DENSE).eval()
    x = torch.randn(1, 3, 64, 96)
    model = load(save(source.state_dict()), **DENSE)
    assert all(torch.equal(a, b) for a, b in zip(source(x), model(x), strict=True))
    table = torch.randn(2, 169)
    assert torch.equal(resize_coarse(table, 13), table)
    assert torch.equal(resize_window(table.t(), 7), table.t())


def test_linear_tables_stay_linear_between_the_borders():
    rows = torch.arange(13.0).repeat_interleave(13)
    new = resize_coarse(torch.stack([rows, 2 * rows]), 21).unflatten(1, (21, 21))
    assert torch.allclose(new[0], new[0, :, :1].expand(21, 21))  # nothing along columns
    steps = new[:, 1:-1].diff(dim=1)
    assert torch.allclose(steps[0], torch.tensor(13 / 21), atol=1e-5)
    assert torch.allclose(steps[1], torch.tensor(26 / 21), atol=1e-5)


def test_symmetric_tables_stay_symmetric():
    grid = torch.randn(3, 13, 13)
    grid = grid + grid.flip(1) + grid.flip(2) + grid.flip(1, 2)
    coarse = resize_coarse(grid.flatten(1), 18).unflatten(1, (18, 18))
    own = resize_window(grid.flatten(1).t(), 12).t().unflatten(1, (23, 23))
    for new in (coarse, own):
        assert torch.allclose(new, new.flip(1), atol=1e-5)
        assert torch.allclose(new, new.flip(2), atol=1e-5)


def combined(table: Tensor, w: int, e: int) -> Tensor:
    """Bias of each place around the window: ``(h, w, w, R, R)``."""
    own = torch.zeros((2 * w - 1) ** 2, table.shape[1])
    square = combined_bias(FocalBias(own, table), FocalGeometry(w, e))
    return square.unflatten(2, (w + 2 * e,) * 2).unflatten(1, (w, w))


def table_of(function: Callable[..., Tensor], w: int, e: int) -> Tensor:
    """Neighbor table whose combined bias is ``function(query row, column, key row, column)``."""
    queries = torch.arange(float(w))
    places = [
        (p // w + move.rows, p % w + move.cols)
        for move in FocalGeometry(w, e).moves
        for p in move.kept
    ]
    rows, cols = torch.tensor(places, dtype=torch.float).t()
    times = torch.tensor([float(places.count(place)) for place in places])
    qr, qc = queries.repeat_interleave(w)[:, None], queries.repeat(w)[:, None]
    return (function(qr, qc, rows, cols) - times.log()).expand(1, 1, w * w, -1)


NEW_SIZES = [(7, 1), (7, 2), (7, 4), (7, 7), (14, 3), (12, 2), (12, 6), (5, 2)]


@pytest.mark.parametrize(('w', 'e'), NEW_SIZES)
def test_neighbors_keep_a_constant_combined_bias(w, e):
    table = table_of(lambda qr, *_: 0 * qr + 1.5, 7, 3)
    new = resize_neighbors(table, FocalGeometry(7, 3), FocalGeometry(w, e))
    assert new.shape == (1, 1, w * w, 4 * (w * w - (w - e) ** 2))
    square = combined(new, w, e)
    square[..., e : e + w, e : e + w] = 1.5
    keys = square > -1e9  # places that hold a key
    assert torch.allclose(square[keys], torch.tensor(1.5), atol=1e-5)


@pytest.mark.parametrize(('w', 'e'), NEW_SIZES)
def test_neighbors_stay_symmetric(w, e):
    def distance(qr: Tensor, qc: Tensor, kr: Tensor, kc: Tensor) -> Tensor:
        return 0.3 * (qr - kr).abs() + 0.01 * (qc - kc) ** 2

    table = table_of(distance, 7, 3)
    square = combined(resize_neighbors(table, FocalGeometry(7, 3), FocalGeometry(w, e)), w, e)
    assert torch.allclose(square, square.flip(1, 3), atol=1e-5)
    assert torch.allclose(square, square.flip(2, 4), atol=1e-5)


def test_neighbors_follow_columns_and_queries_linearly():
    table = table_of(lambda qr, qc, kr, kc: kc + 10 * qc + 0 * qr, 7, 3)
    square = combined(resize_neighbors(table, FocalGeometry(7, 3), FocalGeometry(14, 3)), 14, 3)
    above = square[0, :, 1:-1, :3, 4:-4]  # inner queries, keys above the window
    assert torch.allclose(above.diff(dim=-1), torch.tensor(0.5), atol=1e-3)
    assert torch.allclose(above.diff(dim=1), torch.tensor(5.0), atol=1e-3)


def test_pooling_weights_keep_their_sum():
    weight = torch.randn(1, 49)
    new = resize_pool(weight, 14)
    assert new.shape == (1, 196)
    assert torch.allclose(new.sum(), weight.sum(), atol=1e-5)
    assert torch.allclose(resize_pool(torch.full((1, 49), 1 / 49), 5), torch.tensor(1 / 25))
    conv = resize_pool(weight.view(1, 1, 7, 7).expand(3, 1, 7, 7), 14)
    assert torch.allclose(conv, new.view(1, 1, 14, 14).expand(3, 1, 14, 14))


def test_position_embedding_is_what_the_model_would_resize_to(save):
    source = FocalTransformer(ARCH, abs_pos_embed_size=8)
    model = load(save(source.state_dict()), abs_pos_embed_size=(12, 10))
    expected = source._add_pos_embed(torch.zeros(1, 12, 10, 8))
    found = model.absolute_pos_embed.unflatten(1, (12, 10))
    assert torch.allclose(found, expected, atol=1e-6)


def test_position_embedding_of_an_unknown_grid_is_refused(save):
    path = save(FocalTransformer(ARCH, abs_pos_embed_size=(4, 5)).state_dict())
    with pytest.raises(
        ValueError, match=r'file\.pth: cannot resize .*20 tokens; expected a square number'
    ):
        load(path, abs_pos_embed_size=8)


# ---- configs and whole models ------------------------------------------------------------------


def backbone_config(repo_root: Path, *options: str) -> Config:
    parser = ArgumentParser()
    parser.add_argument('config')
    add_common_arguments(parser)
    config = repo_root / 'configs' / 'detection' / 'focal_t_maskrcnn_1x.py'
    return load_config(parser.parse_args([str(config), *options])).model.backbone


def test_shipped_config_names_the_variable_and_starts_from_scratch_on_demand(
    repo_root, monkeypatch
):
    pytest.importorskip('mmdet')
    monkeypatch.setenv('FOCAL_T_CKPT', 'nowhere/mine.pth')
    with pytest.raises(FileNotFoundError, match=r'nowhere/mine\.pth does not exist'):
        MODELS.build(backbone_config(repo_root)).init_weights()
    option = ('--cfg-options', 'model.backbone.init_cfg=None')
    assert backbone_config(repo_root, *option).init_cfg is None


def test_upstream_classifier_is_renamed():
    state = upstream_state()
    converted = convert_upstream(state)
    assert torch.equal(converted['head.fc.weight'], state['head.weight'])
    assert torch.equal(converted['backbone.norm3.bias'], state['norm.bias'])
    expected = {f'backbone.{key}' for key in FocalTransformer(ARCH, out_indices=(3,)).state_dict()}
    assert converted.keys() == expected | {'head.fc.weight', 'head.fc.bias'}
    assert convert_upstream(converted) is converted


@pytest.mark.parametrize(
    ('state', 'message'),
    [
        ({'2.weight': torch.ones(1)}, r'expected but not in the file: 0\.weight .*: 2\.weight'),
        ({'0.weight': torch.ones(2, 2)}, r'expected but not in the file: 0\.bias \(2,\)'),
        ({'0.weight': torch.ones(3, 2), '0.bias': torch.ones(3)}, 'size mismatch for 0.weight'),
        (  # of a deeper model
            {'0.weight': torch.ones(2, 2), '0.bias': torch.ones(2), '1.weight': torch.ones(1)},
            r'in the file but not in the model: 1\.weight \(1,\)',
        ),
    ],
)
def test_whole_model_loads_completely_or_not(state, message):
    with pytest.raises(ValueError, match=r'(?s)some\.pth does not fit the model.*' + message):
        load_whole_model(nn.Sequential(nn.Linear(2, 2)), state, 'some.pth')


BAD_VALUES = [
    (lambda value: value * float('nan'), 'holds NaN or infinity; expected finite numbers'),
    (lambda value: value.half() / 0, 'holds NaN or infinity'),
    (lambda value: value.long(), r'is torch\.int64; expected floating-point numbers'),
    (lambda value: value.to(torch.complex64), r'is torch\.complex64; expected'),
]


@pytest.mark.parametrize(('change', 'words'), BAD_VALUES)
def test_values_of_a_file_are_finite_numbers(change, words):
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_buffer('mask', torch.full((1,), float('-inf')))  # as in the model, accepted
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state['0.bias'] = change(state['0.bias'])
    with pytest.raises(InputError, match=rf'some\.pth: 0\.bias {words}'):
        load_whole_model(model, state, 'some.pth')
    assert all(value.isfinite().all() for value in model.parameters())


def test_a_whole_model_computes_some_buffers_itself(log):
    model = nn.Sequential(nn.Linear(2, 2))
    state = {key: torch.ones_like(value) for key, value in model.state_dict().items()}
    derived = (
        'backbone.layers.0.blocks.0.attn.relative_position_index_0',
        *('bn.num_batches_tracked', 'data_preprocessor.mean', 'data_preprocessor.std'),
    )
    load_whole_model(model, state | dict.fromkeys(derived, torch.zeros(1)), 'some.pth')
    assert all(value.eq(1).all() for value in model.state_dict().values())
    assert 'loaded 2, ignored 4' in summary(log)


def write_images(folder: Path, images: Tensor) -> None:
    """Write ``(B, 3, H, W)`` int8 as lossless BGR images, 128 brighter."""
    import cv2

    folder.mkdir(parents=True)
    for index, image in enumerate(images):
        pixels = (image.permute(1, 2, 0).int() + 128).numpy().astype(np.uint8)
        assert cv2.imwrite(str(folder / f'{index}.png'), pixels)


def golden_classifier(repo_root: Path, arch: dict) -> str:
    """A config of the released classifiers' family, of the golden model's size."""
    return f"""
_base_ = {str(repo_root / 'configs/classification/focal_t_in1k.py')!r}
model = dict(
    backbone=dict(arch={dict(arch, _delete_=True)!r}),
    head=dict(num_classes=5, in_channels=64, topk=(1,)))
data_preprocessor = dict(
    _delete_=True, num_classes=5, mean=[128] * 3, std=[32] * 3, to_rgb=False)
test_dataloader = dict(batch_size=1, num_workers=0, persistent_workers=False, dataset=dict(
    _delete_=True, type='CustomDataset', data_root='images',
    pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')]))
test_evaluator = dict(_delete_=True, type='Accuracy', topk=(1,))
"""


def test_tool_gives_the_released_classifiers_logits(repo_root, tmp_path, save):
    pytest.importorskip('mmpretrain')
    golden = load_golden(GOLDEN_DIR / 'cls224.pt')
    arch = golden_backbone_cfg(golden['config'])['arch']
    (tmp_path / 'config.py').write_text(golden_classifier(repo_root, arch))
    write_images(tmp_path / 'images' / '0', golden['x_int8'])
    for label in range(1, 5):  # a data set has as many classes as the head
        write_images(tmp_path / 'images' / str(label), golden['x_int8'][:1])
    command = ['config.py', save({'model': golden['state_dict']}), '--out', 'found.pkl']
    done = subprocess.run(
        [sys.executable, str(repo_root / 'tools' / 'test.py'), *command],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(repo_root), 'OMP_NUM_THREADS': '1'},
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    found = pickle.loads((tmp_path / 'found.pkl').read_bytes())
    scores = torch.stack([sample['pred_score'] for sample in found[: len(golden['logits'])]])
    assert torch.allclose(scores, golden['logits'].softmax(1), atol=1e-5)


def test_tensors_of_prefers_named_containers():
    state = {'a': torch.ones(1)}
    assert tensors_of({'state_dict': state, 'b': torch.ones(1)}, 'file') == state
    with pytest.raises(ValueError, match='expected one Focal Transformer'):
        backbone_part(state, 'file')

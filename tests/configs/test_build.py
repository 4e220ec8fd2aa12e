# SPDX-License-Identifier: Apache-2.0
"""Every shipped config loads and builds, with parameters counted and parts that fit together."""

from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from mmengine.utils import get_installed_path

import mmfocal
from mmfocal.engine import read_config
from mmfocal.engine.machine import dicts_in, kind_of
from tests.helpers.config_suite import (
    CONFIGS,
    ROOT,
    ROWS,
    SMALL,
    backbone_maps,
    build_meta,
    differences,
    load,
    meta_model,
    settings,
    skip_without_host,
    words,
)

# Classifiers whose parameters were counted independently of this code. The metafiles hold the
# counts of all configs, tests/helpers/recipe_numbers.py rounded ones of the paper's rows.
ANCHORED = {
    'focal_t_in1k': 28_880_380,
    'focal_s_in1k': 51_141_940,
    'focal_b_in1k': 89_815_400,
    'focal_t_convembed_in1k': 30_825_244,
    'focal_s_convembed_in1k': 53_086_804,
    'focal_b_convembed_in1k': 93_268_712,
    'focal_l_in22k': 231_635_257,  # 199,602,640 with 1,000 classes
    'ablations/focal_t_window14_in1k': 29_424_952,
}

# dense backbones with four outputs; an output norm has 2 x width parameters
RECIPE_BACKBONES = dict(t=28_443_828, s=50_726_124, b=89_261_312, l=198_772_008)
WIDTHS = dict(t=96, s=96, b=128, l=192)

# what the ablations change in the backbone
DEPTHS = {'d2222': (2, 2, 2, 2), 'd2242': (2, 2, 4, 2)}
ABLATIONS = {
    'window14': dict(window_size=14),
    'shift': dict(use_shift=True),
    'window_only': dict(focal_levels=(1, 1, 1, 1), expand_sizes=(0, 0, 0, 0)),
    'local': dict(focal_levels=(1, 1, 1, 1)),
    'global': dict(expand_sizes=(0, 0, 0, 0)),
    **{
        name: dict(arch=dict(embed_dims=96, depths=depths, num_heads=(3, 6, 12, 24)))
        for name, depths in DEPTHS.items()
    },
}


def count(name: str) -> int:
    return sum(param.numel() for param in meta_model(name).parameters())


def trainable(name: str) -> int:
    return sum(param.numel() for param in meta_model(name).parameters() if param.requires_grad)


@pytest.mark.parametrize('name', ANCHORED)
def test_anchored_parameters(name):
    assert count(f'classification/{name}') == ANCHORED[name]


@pytest.mark.parametrize('name', CONFIGS)
def test_parameters_are_those_of_the_metafile(name):
    models = yaml.safe_load((ROOT / name).with_name('metafile.yml').read_text())['Models']
    (model,) = (model for model in models if model['Name'] == name.split('/')[-1])
    assert trainable(name) == model['Metadata']['Parameters']


@pytest.mark.parametrize(
    'name',
    [
        name
        for name in ROWS
        if name.startswith(('detection/focal', 'segmentation/focal')) and 'w12' not in name
    ],
)
def test_dense_backbones_are_the_recipes(name):
    size, backbone = words(name)[1], load(name).model.backbone
    expected = RECIPE_BACKBONES[size]
    if tuple(backbone.get('out_indices', (0, 1, 2, 3))) == (1, 2, 3):
        expected -= 2 * WIDTHS[size]
    found = sum(param.numel() for param in meta_model(name).backbone.parameters())
    assert found == expected
    assert tuple(backbone.focal_windows) == (15, 13, 9, 7)
    assert tuple(backbone.expand_sizes) == (3, 3, 3, 3)


@pytest.mark.parametrize('name', CONFIGS)
def test_widths_and_strides_agree(name):
    cfg = load(name)
    model = cfg.model
    maps = backbone_maps(name)
    widths = [found.shape[1] for found in maps]
    strides = [224 // found.shape[-1] for found in maps]
    neck = model.get('neck', {})
    neck = neck[0] if isinstance(neck, list) else neck
    if 'in_channels' in neck:
        assert list(neck.in_channels) == widths
    if 'decode_head' in model:
        assert list(model.decode_head.in_channels) == widths
        assert list(model.decode_head.in_index) == [0, 1, 2, 3]
        assert model.auxiliary_head.in_channels == widths[model.auxiliary_head.in_index]
    if model.type == 'ImageClassifier':
        assert model.head.in_channels == widths[-1]
    stated = {key: value for key, value in settings(model) if key.endswith('strides')}
    semantic = stated.pop('roi_head.semantic_roi_extractor.featmap_strides', None)
    if semantic:
        assert semantic == [strides[model.roi_head.semantic_head.fusion_level]]
    for key, value in stated.items():
        assert value[: len(strides)] == strides, key
    assert bool(stated) == (cfg.default_scope == 'mmdet')


@pytest.mark.parametrize('ablation', ABLATIONS)
@pytest.mark.parametrize('task', ['in1k', 'maskrcnn_1x'])
def test_ablations_change_one_thing(ablation, task):
    folder = 'classification' if task == 'in1k' else 'detection'
    name = f'{folder}/ablations/focal_t_{ablation}_{task}'
    ours, base = load(name), load(f'{folder}/focal_t_{task}')
    expected = {**base.model.backbone, **ABLATIONS[ablation]}
    if task == 'maskrcnn_1x':  # starts from the classifier of the same ablation
        stem = name.split('/')[-1].replace('maskrcnn_1x', 'in1k')
        expected['init_cfg'] = dict(
            type='FocalPretrained', checkpoint=f'work_dirs/{stem}/epoch_300.pth'
        )
    elif ablation == 'window14':  # at 224 pixels two of the maps are a single window
        expected.update(window_size=(14, 14, 14, 7), expand_sizes=(3, 3, 0, 0))
    assert ours.model.backbone == expected
    changed = differences(ours, base)
    assert all(key.startswith('model.backbone.') for key in changed), changed


@pytest.mark.parametrize('name', [name for name in ROWS if words(name)[0] == 'swin'])
def test_swin_is_trained_as_focal(name):
    """The paper's own Swin runs have Focal's hyper-parameters."""
    folder, size = name.split('/')[0], words(name)[1]
    task = '_'.join(words(name)[-2:]) if folder == 'detection' else 'in1k'
    base = f'{folder}/focal_{size}_{task}'
    changed = differences(load(name), load(base))
    assert changed and all(key.startswith('model.backbone.') for key in changed), changed


@pytest.mark.parametrize('name', [name for name in ROWS if words(name)[0] == 'swin'])
def test_swin_windows(name):
    backbone = meta_model(name).backbone
    depths = {'d2222': [2, 2, 2, 2], 'd2242': [2, 2, 4, 2]}.get(words(name)[2], [2, 2, 6, 2])
    if words(name)[1] in 'sb':
        depths = [2, 2, 18, 2]
    assert [len(stage.blocks) for stage in backbone.stages] == depths
    for index, stage in enumerate(backbone.stages):
        window = 14 if 'window14' in name else 7
        if index == 3:  # the classifier's map has 7 rows, and detectors take its weights
            window = 7
        shift = 0 if 'noshift' in name else window // 2
        attention = [block.attn for block in stage.blocks]
        assert {module.window_size for module in attention} == {window}
        assert [module.shift_size for module in attention] == [0, shift] * (depths[index] // 2)


@pytest.mark.skipif(
    not (Path(get_installed_path('mmfocal')) / '.mim').exists(),
    reason='MMEngine finds no installed mmfocal: pip install --no-deps -e .',
)
@pytest.mark.parametrize(
    'name',
    [
        'detection/focal_t_maskrcnn_1x',
        'segmentation/focal_t_upernet_160k',
        'quickstart/focal_nano_cls',
    ],
)
def test_configs_serve_as_bases_of_other_projects(name, tmp_path):
    skip_without_host(name)
    mine = tmp_path / 'mine.py'
    mine.write_text(f"_base_ = 'mmfocal::{name}.py'\n")
    cfg = read_config(mine)
    assert cfg.to_dict() == load(name).to_dict()
    assert type(build_meta(cfg).backbone) is mmfocal.FocalTransformer


@pytest.mark.parametrize(
    ('name', 'variable', 'default'),
    [
        ('detection/focal_t_maskrcnn_1x', 'FOCAL_T_CKPT', 'focal-tiny-is224-ws7.pth'),
        ('detection/focal_s_atss_3x', 'FOCAL_S_CKPT', 'focal-small-is224-ws7.pth'),
        ('segmentation/focal_b_upernet_160k', 'FOCAL_B_CKPT', 'focal-base-is224-ws7.pth'),
        ('detection/focal_l_htcpp_3x', 'FOCAL_L_CKPT', 'focal-large-in22k-is224-ws7.pth'),
        (
            'detection/focal_l_dyhead_w12_2x',
            'FOCAL_L_W12_CKPT',
            'focal-large-in22k-is384-ws12.pth',
        ),
    ],
)
def test_the_pretrained_file_comes_from_the_environment(name, variable, default, monkeypatch):
    skip_without_host(name)
    monkeypatch.delenv(variable, raising=False)
    init_cfg = Config.fromfile(ROOT / f'{name}.py').model.backbone.init_cfg
    assert init_cfg == dict(type='FocalPretrained', checkpoint=f'checkpoints/{default}')
    monkeypatch.setenv(variable, '/elsewhere/my.pth')
    init_cfg = Config.fromfile(ROOT / f'{name}.py').model.backbone.init_cfg
    assert init_cfg.checkpoint == '/elsewhere/my.pth'


def test_quickstart_twins_differ_by_the_backbone_alone():
    focal, swin = (load(f'quickstart/{name}_nano_maskrcnn') for name in ('focal', 'swin'))
    sizes = {key: swin.model.backbone[key] for key in ('embed_dims', 'depths', 'num_heads')}
    assert focal.model.backbone.arch == sizes
    assert focal.model.backbone.drop_path_rate == swin.model.backbone.drop_path_rate
    changed = differences(focal, swin)
    assert all(key.startswith('model.backbone.') for key in changed), changed


@pytest.mark.parametrize('name', [name for name in SMALL if not name.endswith('_jitter')])
def test_digits_are_never_mirrored(name):
    cfg = load(name)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert 'Flip' not in str(loader)
    flips = [step for step in dicts_in(cfg.tta_pipeline) if kind_of(step) == 'RandomFlip']
    assert not any(flip['prob'] for flip in flips)


@pytest.mark.parametrize('method', ['t_maskrcnn', 'nano_reppointsv2'])
def test_overfitting_sees_the_same_pictures_unchanged(method):
    cfg = load(f'detection/focal_{method}_overfit')
    train, test = (loader.dataset for loader in (cfg.train_dataloader, cfg.test_dataloader))
    for pipeline in (train.pipeline, test.pipeline):
        assert [step.type for step in pipeline] == [
            *('LoadImageFromFile', 'LoadAnnotations', 'Resize', 'PackDetInputs'),
        ]
    assert train.ann_file == test.ann_file and train.data_prefix == test.data_prefix

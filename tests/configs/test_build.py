# SPDX-License-Identifier: Apache-2.0
"""Every shipped config loads and builds, with parameters counted and parts that fit together."""

from collections import Counter
from pathlib import Path

import pytest
from mmengine.config import Config

import mmfocal
from mmfocal.engine import read_config
from tests.helpers.config_suite import (
    CONFIGS,
    ROOT,
    ROWS,
    SMALL,
    backbone_maps,
    build_empty,
    differences,
    load,
    settings,
    skeleton,
    words,
)

# What each config has now. Independent of this code are the classifiers with ``anchored`` beside
# them, the dense backbones below, and the rounded numbers in tests/helpers/recipe_numbers.py.
PARAMETERS = {
    'classification': dict(
        focal_t_in1k=28_880_380,  # anchored
        focal_s_in1k=51_141_940,  # anchored
        focal_b_in1k=89_815_400,  # anchored
        focal_t_convembed_in1k=30_825_244,  # anchored
        focal_s_convembed_in1k=53_086_804,  # anchored
        focal_b_convembed_in1k=93_268_712,  # anchored
        focal_l_in22k=231_635_257,  # anchored: 199,602,640 with 1,000 classes
    ),
    'classification/ablations': dict(
        focal_t_window14_in1k=29_424_952,  # anchored
        focal_t_shift_in1k=28_880_380,
        focal_t_window_only_in1k=28_287_010,
        focal_t_local_in1k=28_869_130,
        focal_t_global_in1k=28_298_260,
        focal_t_d2222_in1k=21_459_860,
        focal_t_d2242_in1k=25_170_120,
        swin_t_in1k=28_288_354,
        swin_t_window14_in1k=28_338_754,
        swin_t_noshift_in1k=28_288_354,
        swin_t_d2222_in1k=21_182_386,
        swin_t_d2242_in1k=24_735_370,
    ),
    'detection': dict(
        focal_t_retinanet_1x=39_381_736,
        focal_s_retinanet_1x=61_664_032,
        focal_b_retinanet_1x=100_903_668,
        focal_t_retinanet_3x=39_381_736,
        focal_s_retinanet_3x=61_664_032,
        focal_b_retinanet_3x=100_903_668,
        focal_t_maskrcnn_1x=48_717_732,
        focal_s_maskrcnn_1x=71_000_028,
        focal_b_maskrcnn_1x=109_658_096,
        focal_t_maskrcnn_3x=48_717_732,
        focal_s_maskrcnn_3x=71_000_028,
        focal_b_maskrcnn_3x=109_658_096,
        focal_t_maskrcnn_overfit=48_717_732,
        focal_nano_reppointsv2_overfit=3_661_172,
        focal_t_cascade_3x=86_552_934,
        focal_s_cascade_3x=108_835_230,
        focal_b_cascade_3x=147_493_298,
        focal_t_atss_3x=36_657_486,
        focal_s_atss_3x=58_939_782,
        focal_b_atss_3x=97_589_594,
        focal_t_reppointsv2_3x=45_839_332,
        focal_s_reppointsv2_3x=68_121_628,
        focal_b_reppointsv2_3x=106_836_464,
        focal_t_reppointsv2_fpn_3x=40_131_006,
        r50_reppointsv2_1x=38_717_962,
        focal_t_sparsercnn_3x=110_664_284,
        focal_s_sparsercnn_3x=132_946_580,
        focal_b_sparsercnn_3x=171_604_648,
        focal_t_htcpp_3x=84_579_689,
        focal_l_htcpp_3x=255_276_509,
        focal_l_htcpp_4conv1fc_3x=259_211_741,
        focal_l_dyhead_2x=213_931_818,
        focal_l_dyhead_w12_2x=231_054_078,
    ),
    'detection/ablations': dict(
        focal_t_window14_maskrcnn_1x=56_054_166,
        focal_t_shift_maskrcnn_1x=48_717_732,
        focal_t_window_only_maskrcnn_1x=47_793_258,
        focal_t_local_maskrcnn_1x=48_685_842,
        focal_t_global_maskrcnn_1x=47_825_148,
        focal_t_d2222_maskrcnn_1x=41_290_300,
        focal_t_d2242_maskrcnn_1x=45_004_016,
        swin_t_maskrcnn_1x=47_794_602,
        swin_t_window14_maskrcnn_1x=47_871_882,
        swin_t_noshift_maskrcnn_1x=47_794_602,
        swin_t_d2222_maskrcnn_1x=40_688_634,
        swin_t_d2242_maskrcnn_1x=44_241_618,
        swin_t_retinanet_1x=38_458_606,
        swin_s_retinanet_1x=59_776_510,
        swin_b_retinanet_1x=98_387_372,
        swin_t_retinanet_3x=38_458_606,
        swin_s_retinanet_3x=59_776_510,
        swin_b_retinanet_3x=98_387_372,
    ),
    'segmentation': dict(
        focal_t_upernet_160k=60_864_992,
        focal_s_upernet_160k=83_147_288,
        focal_b_upernet_160k=123_796_012,
        focal_l_upernet_640_160k=237_533_780,
    ),
    'quickstart': dict(
        focal_nano_cls=2_377_806,
        focal_nano_retinanet=3_068_354,
        focal_nano_maskrcnn=3_555_363,
        focal_nano_maskrcnn_jitter=3_555_363,
        focal_nano_cascade=5_728_067,
        focal_nano_atss=2_893_720,
        focal_nano_reppointsv2=3_652_328,
        focal_nano_sparsercnn=3_764_054,
        focal_nano_htcpp=5_585_230,
        focal_nano_dyhead=2_854_128,
        focal_nano_upernet=3_085_208,
        swin_nano_maskrcnn=3_462_605,
        swin_nano_cls=2_285_048,
    ),
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
    return sum(param.numel() for param in skeleton(name).parameters())


def test_the_suite_sees_the_configs():
    found = Counter(str(Path(name).parent) for name in CONFIGS)
    assert found == {folder: len(rows) for folder, rows in PARAMETERS.items()}
    assert len(CONFIGS) == 86


@pytest.mark.parametrize('name', CONFIGS)
def test_parameters(name):
    folder, stem = name.rsplit('/', 1)
    assert count(name) == PARAMETERS[folder][stem]


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
    found = sum(param.numel() for param in skeleton(name).backbone.parameters())
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
    backbone = skeleton(name).backbone
    depths = {'d2222': [2, 2, 2, 2], 'd2242': [2, 2, 4, 2]}.get(words(name)[2], [2, 2, 6, 2])
    if words(name)[1] in 'sb':
        depths = [2, 2, 18, 2]
    assert [len(stage.blocks) for stage in backbone.stages] == depths
    for index, stage in enumerate(backbone.stages):
        window = 14 if 'window14' in name else 7
        if name.endswith('_in1k') and index == 3:  # its map has 7 rows
            window = 7
        shift = 0 if 'noshift' in name else window // 2
        attention = [block.attn for block in stage.blocks]
        assert {module.window_size for module in attention} == {window}
        assert [module.shift_size for module in attention] == [0, shift] * (depths[index] // 2)


@pytest.mark.skipif(
    not (Path(mmfocal.__file__).parent / '.mim').exists(),
    reason='mmfocal is not installed: pip install --no-deps -e .',
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
    mine = tmp_path / 'mine.py'
    mine.write_text(f"_base_ = 'mmfocal::{name}.py'\n")
    cfg = read_config(mine)
    assert cfg.to_dict() == load(name).to_dict()
    assert type(build_empty(cfg).backbone) is mmfocal.FocalTransformer


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
    assert 'Flip' not in str(cfg.get('tta_pipeline'))


@pytest.mark.parametrize('method', ['t_maskrcnn', 'nano_reppointsv2'])
def test_overfitting_sees_the_same_pictures_unchanged(method):
    cfg = load(f'detection/focal_{method}_overfit')
    train, test = (loader.dataset for loader in (cfg.train_dataloader, cfg.test_dataloader))
    for pipeline in (train.pipeline, test.pipeline):
        assert [step.type for step in pipeline] == [
            *('LoadImageFromFile', 'LoadAnnotations', 'Resize', 'PackDetInputs'),
        ]
    assert train.ann_file == test.ann_file and train.data_prefix == test.data_prefix

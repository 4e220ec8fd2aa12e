# SPDX-License-Identifier: Apache-2.0
"""Counts by formulas equal those of executed operators; whole models reach the derived numbers."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmfocal.analysis.complexity import CONVENTIONS, complexity, image_size
from mmfocal.analysis.complexity.counter import MacCounter
from mmfocal.engine import read_config
from mmfocal.models.focal_transformer import FocalAttention
from mmfocal.models.layers import FcPool
from mmfocal.ops.focal_attention import IMPLS, FocalGeometry
from tests.helpers.recipe_numbers import FLOPS_TOLERANCE, TABLE, assert_printed, half_a_unit, parse
from tools.dev.model_zoo.paper import read_paper

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
NANO = 'quickstart/focal_nano_maskrcnn'


def load(name: str) -> Config:
    return read_config(CONFIGS / f'{name}.py')


def count(module: nn.Module, *args) -> Counter[str]:
    """Return MACs by kind, with all formulas."""
    with MacCounter(module.to('meta')) as counter, torch.no_grad():
        module(*args)
    return counter.macs()['Global']


def run_macs(module: nn.Module, *args) -> Counter[str]:
    """Return MACs of the executed operators, by PyTorch's names."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.to('meta')(*args)
    flops = counter.get_flop_counts()['Global']
    return Counter({str(op): value // 2 for op, value in flops.items()})


def meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device='meta')


def test_layers_by_hand():
    assert count(nn.Linear(5, 7), meta(2, 3, 5)) == dict(linear=2 * 3 * 5 * 7)
    conv = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4)
    assert count(conv, meta(1, 8, 10, 10)) == dict(linear=12 * 5 * 5 * 2 * 9)
    up = nn.ConvTranspose2d(8, 4, 2, stride=2)
    assert count(up, meta(1, 8, 5, 5)) == dict(linear=8 * 5 * 5 * 4 * 4)
    for norm in (nn.LayerNorm(8), nn.GroupNorm(2, 6), nn.SyncBatchNorm(6).eval()):
        assert count(norm, meta(1, 6, 8, 8)) == dict(norm=6 * 8 * 8)
    # 4 queries of 2 heads with 3 channels; projections of queries, keys, values and outputs
    attention = nn.MultiheadAttention(6, 2).eval()
    expected = dict(linear=4 * 4 * 6 * 6, product=2 * 4 * 4 * 6)
    assert count(attention, *[meta(4, 1, 6)] * 3) == expected


def test_plain_convolutions_equal_torchs_counter():
    net = nn.Sequential(nn.Conv2d(3, 8, 7, 4, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, dilation=2))
    macs = count(net, meta(2, 3, 64, 48))
    assert macs['linear'] == run_macs(net, meta(2, 3, 64, 48)).total() > 0


GEOMETRIES = {
    'default': FocalGeometry(7, 3, 5, 2),
    'window only': FocalGeometry(7),
    'fine only': FocalGeometry(7, 3),
    'coarse only': FocalGeometry(7, 0, 5, 2),
    'three levels, small window, wide margin': FocalGeometry(4, 4, 3, 3),
}


def make_attention(geometry: FocalGeometry, impl: str = 'auto') -> tuple[FocalAttention, tuple]:
    """Return a layer of 2 heads and 16 channels, and its inputs: 2x3 windows of 2 images."""
    map_size = (2 * geometry.window_size, 3 * geometry.window_size)
    tokens = meta(2, geometry.num_tokens(*map_size), 16)
    return FocalAttention(16, 2, geometry, impl=impl), (tokens, map_size)


def test_focal_attention_by_hand():
    module, args = make_attention(GEOMETRIES['default'])
    windows, tokens = 2 * 2 * 3, 2 * 14 * 21
    assert count(module, *args) == dict(
        linear=tokens * 4 * 16**2,
        coarse_kv=windows * 2 * 16**2,
        coarse_q=windows * 16**2,
        gathered_qkv=windows * 25 * 3 * 16**2,
        attention=windows * 2 * 49 * (49 + 120 + 25) * 16,
        repeated=windows * 2 * 49 * 12 * 16,
    )


@pytest.mark.parametrize('name', GEOMETRIES)
def test_focal_attention_equals_what_runs(name):
    """``reference`` gathers neighbors as the released code does, some twice."""
    module, args = make_attention(GEOMETRIES[name], 'reference')
    ran = run_macs(module, *args)
    macs = count(module, *args)
    assert macs['linear'] + macs['coarse_kv'] + macs['coarse_q'] == ran['aten.addmm']
    assert macs['attention'] + macs['repeated'] == ran['aten.bmm']


def test_fc_pool_counts_as_a_linear_layer():
    """The layer runs as a matrix product of the same size."""
    module, cells = FcPool(7), meta(2, 3, 7, 4, 7, 16)
    ran = run_macs(module, cells)
    assert count(module, cells) == dict(linear=ran['aten.bmm'])
    assert ran['aten.bmm'] == 2 * 3 * 4 * 16 * 49


def test_every_backend_counts_alike():
    cfg = load(NANO)
    counts = set()
    for impl in IMPLS:
        cfg.model.backbone.attn_impl = impl
        model = complexity(cfg)
        counts.add(tuple(model.flops(name) for name in CONVENTIONS))
    assert len(counts) == 1, dict(zip(IMPLS, counts, strict=False))


@pytest.mark.parametrize('where', ['mmpretrain.models.utils', 'mmdet.models.backbones.swin'])
def test_window_attention_equals_what_runs(where):
    models = pytest.importorskip(where)
    module = models.WindowMSA(16, num_heads=2, window_size=(7, 7))
    ran = run_macs(module, meta(6, 49, 16))
    macs = count(module, meta(6, 49, 16))
    assert macs == dict(linear=ran['aten.addmm'], attention=ran['aten.bmm'])
    assert macs['attention'] == 6 * 2 * 49 * 49 * 16


def test_deformable_convolutions_equal_plain_ones():
    ops = pytest.importorskip('mmcv.ops')
    settings = dict(kernel_size=3, stride=2, padding=2, dilation=2, bias=False)
    plain = nn.Conv2d(8, 12, groups=2, **settings)
    x, offset, mask = meta(1, 8, 20, 16), meta(1, 18, 10, 8), meta(1, 9, 10, 8)
    expected = count(plain, x)['linear']
    for cls, args in (
        (ops.DeformConv2d, [x, offset]),
        (ops.ModulatedDeformConv2d, [x, offset, mask]),
    ):
        module = cls(8, 12, groups=2, **settings)
        assert count(module, *args) == dict(deform=expected)
        assert module(*args).shape == plain(x).shape
    pack = ops.ModulatedDeformConv2dPack(8, 12, groups=2, **settings)
    own = expected // (12 * 4) * 27 * 8  # to 27 offsets and weights, from all 8 channels
    assert count(pack, x) == dict(deform=expected, linear=own)


def derived_rows() -> list:
    """Name, parameters, MACs by convention and shape of every row."""
    return [pytest.param(*row, id=row.name.rpartition('/')[2]) for row in parse(TABLE)]


def swin_rows() -> list:
    """Return Swin's published rows without a config, each with the config of Focal in its place.

    Swin-L is left out: its models differ in more than the backbone, or were counted differently.
    """
    found = []
    for table in read_paper().tables:
        by_name = {row.name: row for row in table.rows}
        for focal in (row for row in table.rows if row.config and 'Focal' in row.name):
            name = focal.name.replace('Focal', 'Swin')
            swin = by_name.get(name) or by_name.get(f"{name} (Swin's own)")
            if not swin or swin.config or not swin.params or 'Swin-L' in swin.name:
                continue
            marks = () if 'Swin-T' in swin.name else pytest.mark.slow
            found.append(pytest.param(focal.config, swin, id=swin.name, marks=marks))
    return found


def assert_counts(
    cfg: Config, params: str, flops: dict[str, str], shape: tuple[int, int] | None
) -> None:
    model = complexity(cfg, shape)
    assert_printed(model.params / 1e6, params, 'parameters')
    actual = {convention: model.flops(convention) / 1e9 for convention in flops}
    for convention, value in flops.items():
        tolerance = dict(rel=FLOPS_TOLERANCE, abs=half_a_unit(value))
        assert actual[convention] == pytest.approx(float(value), **tolerance), convention


@pytest.mark.parametrize(('name', 'params', 'flops', 'shape'), derived_rows())
def test_configs_reach_the_derived_numbers(name, params, flops, shape):
    assert_counts(load(name), params, flops, shape)


@pytest.mark.parametrize(('config', 'swin'), swin_rows())
def test_swin_reaches_the_published_numbers(config, swin):
    cfg = read_config(CONFIGS / config)
    focal = cfg.model.backbone
    cfg.model.backbone = dict(
        type='mmpretrain.SwinTransformer',
        arch=focal.arch,
        out_indices=focal.get('out_indices', (0, 1, 2, 3)),
    )
    assert_counts(cfg, str(swin.params), {swin.convention: str(swin.flops)}, swin.shape)


def test_swins_rows_are_found():
    methods = Counter(case.values[1].method.name for case in swin_rows())
    assert methods == {
        **{'Focal Transformer': 2, 'Mask R-CNN': 5, 'Cascade Mask R-CNN': 1, 'ATSS': 1},
        **{'RepPointsV2': 1, 'Sparse R-CNN': 1, 'UperNet': 3},
    }


@pytest.mark.parametrize('convention', CONVENTIONS)
def test_modules_add_up(convention):
    model = complexity(load(NANO))
    top = model.by_module(convention)
    assert [row.name for row in top] == ['backbone', 'neck', 'rpn_head', 'roi_head']
    assert sum(row.params for row in top) == model.params
    assert sum(row.flops for row in top) == model.flops(convention) > 0
    deep = {row.name: row for row in model.by_module(convention, depth=3)}
    for parent in ('backbone.layers', 'roi_head', 'roi_head.mask_head'):
        children = [
            row
            for name, row in deep.items()
            if name.startswith(f'{parent}.') and name.count('.') == parent.count('.') + 1
        ]
        assert sum(row.params for row in children) == deep[parent].params, parent
        assert sum(row.flops for row in children) == deep[parent].flops > 0, parent


def test_rois():
    """Box and mask heads get 1000 and 100 RoIs; each stage of a cascade gets all of them."""
    rows_of = {
        name: {row.name: row.flops for row in complexity(load(name)).by_module('linear', 3)}
        for name in ('detection/focal_t_maskrcnn_1x', 'detection/focal_t_cascade_3x')
    }
    plain, cascade = rows_of.values()
    fully_connected = 256 * 49 * 1024 + 1024 * 1024 + 1024 * (81 + 320)
    assert plain['roi_head.bbox_head'] == 1000 * fully_connected
    convs, up, last = 4 * 14**2 * 256 * 256 * 9, 14**2 * 256 * 256 * 4, 28**2 * 256 * 80
    assert plain['roi_head.mask_head'] == 100 * (convs + up + last)
    for stage in range(3):
        assert cascade[f'roi_head.mask_head.{stage}'] == plain['roi_head.mask_head']
        convs = 4 * 7**2 * 256 * 256 * 9
        fc = 256 * 49 * 1024 + 1024 * (81 + 320)
        assert cascade[f'roi_head.bbox_head.{stage}'] == 1000 * (convs + fc)


def test_masks_of_sparse_detectors():
    configs = Path(pytest.importorskip('mmdet').__file__).parent / '.mim' / 'configs'
    model = complexity(Config.fromfile(configs / 'queryinst' / 'queryinst_r50_fpn_1x_coco.py'))
    flops = {row.name: row.flops for row in model.by_module(depth=4)}
    for stage in range(6):
        convs = flops[f'roi_head.mask_head.{stage}.convs']
        assert convs == 100 * 4 * 14**2 * 256 * 256 * 9


def test_auxiliary_heads_have_parameters_but_no_flops():
    model = complexity(load('quickstart/focal_nano_upernet'))
    rows_by_name = {row.name: row for row in model.by_module()}
    assert rows_by_name['auxiliary_head'].params > 0
    assert rows_by_name['auxiliary_head'].flops == 0
    assert sum(row.params for row in rows_by_name.values()) == model.params


def test_frozen_parameters_do_not_count():
    cfg = load('quickstart/focal_nano_cls')
    every = complexity(cfg).params
    cfg.model.backbone.frozen_stages = 4
    assert complexity(cfg).params == 256 * 10 + 10  # the head
    assert every > 2e6


def test_shape():
    cfg = load('quickstart/focal_nano_atss')
    model = complexity(cfg)
    assert model.shape == model.shape_of('linear') == (160, 160)
    assert model.shape_of('reppointsv2') == (1280, 1280)
    given = complexity(cfg, [1280, 1280])
    assert given.shape == given.shape_of('reppointsv2') == (1280, 1280)
    assert given.flops('reppointsv2') == model.flops('reppointsv2')
    assert given.flops() > 1.5 * model.flops()
    assert complexity(cfg, (320, 320)).shape_of('reppointsv2') == (320, 320)


SHAPES = {
    'quickstart/focal_nano_maskrcnn': (160, 160),
    'quickstart/focal_nano_upernet': (160, 160),
    'quickstart/focal_nano_cls': (56, 56),
    'detection/focal_t_maskrcnn_3x': (800, 1280),
    'detection/focal_l_htcpp_3x': (1400, 1600),
    'segmentation/focal_t_upernet_160k': (512, 2048),
    'segmentation/focal_l_upernet_640_160k': (640, 2560),
    'classification/focal_t_in1k': (224, 224),
}


@pytest.mark.parametrize('name', SHAPES)
def test_size_of_the_test_pipeline(name):
    assert image_size.test_shape(load(name)) == SHAPES[name]


def test_sizes_of_pipelines():
    def shape(*pipeline: dict, wrap: bool = False) -> tuple[int, int] | None:
        dataset = dict(pipeline=list(pipeline))
        dataset = dict(datasets=[dict(dataset=dataset)]) if wrap else dataset
        return image_size.test_shape(Config(dict(test_dataloader=dict(dataset=dataset))))

    assert shape(dict(type='mmdet.Resize', scale=(480, 640), keep_ratio=True)) == (480, 640)
    assert shape(dict(type='Resize', scale=(480, 640)), wrap=True) == (640, 480)
    assert shape(dict(type='FixShapeResize', width=320, height=96)) == (96, 320)
    edge = dict(type='ResizeEdge', scale=256, edge='short')
    assert shape(edge, dict(type='CenterCrop', crop_size=224), dict(type='Pack')) == (224, 224)
    for step in (dict(type='Resize', scale_factor=0.5), dict(type='PackInputs')):
        assert shape(step) is None
    without = load('quickstart/focal_nano_cls')
    without.test_dataloader = without.val_dataloader = None
    assert complexity(without).shape == (224, 224)


def test_a_model_is_left_as_it_was():
    """Counting twice, in any order, gives the same."""
    model = complexity(load(NANO))
    first = model.flops()
    model.flops('reppointsv2')
    assert model.flops() == first == complexity(load(NANO)).flops()


def test_senseless_arguments_are_named():
    cfg = load(NANO)
    with pytest.raises(ValueError, match=r"one of default, linear, .*, got 'fvcore'"):
        complexity(cfg).flops('fvcore')
    for shape in ((16, 640), (640,), (0, 0)):
        with pytest.raises(ValueError, match='shape must be a height and a width of at least 32'):
            complexity(cfg, shape)
    cfg.default_scope = 'mmpose'
    with pytest.raises(ValueError, match=r"maskrcnn\.py: default_scope must be .*, got 'mmpose'"):
        complexity(cfg)


def test_what_cannot_be_fed_is_named():
    cfg = load(NANO)
    cfg.model.roi_head.type = 'DoubleHeadRoIHead'
    cfg.model.roi_head.reg_roi_scale_factor = 1.3
    with pytest.raises(ValueError, match='MaskRCNN with a DoubleHeadRoIHead cannot be run'):
        complexity(cfg).flops()
    cfg = load('quickstart/focal_nano_atss')
    cfg.model.backbone.out_indices = (0, 1, 2)
    message = r'ATSS cannot be run without data on an image of \(160, 160\): \w+Error: '
    with pytest.raises(ValueError, match=message):
        complexity(cfg).flops()

# SPDX-License-Identifier: Apache-2.0
"""Options, counts and behavior of the backbone; its arithmetic is tested in test_parity."""

import inspect
import io
import logging
import re

import pytest
import torch
from mmengine.analysis import get_model_complexity_info
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from torch import Tensor

from mmfocal import FocalTransformer
from mmfocal.models import focal_transformer
from mmfocal.ops.focal_attention import api

NANO = dict(embed_dims=8, depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 2))
DENSE = dict(focal_windows=(15, 13, 9, 7), expand_sizes=(3, 3, 3, 3))


def nano(seed: int = 0, **cfg) -> FocalTransformer:
    """A model in evaluation mode whose residual branches, biases included, are not negligible."""
    torch.manual_seed(seed)
    model = FocalTransformer(**{'arch': NANO, 'drop_path_rate': 0.0, **cfg})
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def build(arch: str, **cfg) -> FocalTransformer:
    with torch.device('meta'):
        return FocalTransformer(arch, **cfg)


def test_the_backbone_is_short_and_has_no_device_in_it():
    source = inspect.getsource(focal_transformer)
    assert len(source.splitlines()) <= 500
    assert len(inspect.getsource(FocalTransformer.__init__).splitlines()) <= 60
    assert not re.search(r'\.device\b|is_cuda|\.type ==', source)


@pytest.mark.parametrize(
    ('arch', 'expected'),
    [('tiny', 28_880_380), ('small', 51_141_940), ('base', 89_815_400), ('large', 199_602_640)],
)
def test_classifier_parameters(arch: str, expected: int) -> None:
    backbone = build(arch, out_indices=(3,))
    assert count(backbone) + (backbone.num_features[-1] + 1) * 1000 == expected


@pytest.mark.parametrize(
    ('arch', 'expected'), [('tiny', 30_825_244), ('small', 53_086_804), ('base', 93_268_712)]
)
def test_conv_embed_classifier_parameters(arch: str, expected: int) -> None:
    backbone = build(arch, out_indices=(3,), use_conv_embed=True)
    assert count(backbone) + (backbone.num_features[-1] + 1) * 1000 == expected


@pytest.mark.parametrize(
    ('arch', 'all_outputs', 'last_three'),
    [
        ('tiny', 28_443_828, 28_443_636),
        ('small', 50_726_124, 50_725_932),
        ('base', 89_261_312, 89_261_056),
        ('large', 198_772_008, 198_771_624),
    ],
)
def test_dense_parameters(arch: str, all_outputs: int, last_three: int) -> None:
    assert count(build(arch, **DENSE)) == all_outputs
    assert count(build(arch, **DENSE, out_indices=(1, 2, 3))) == last_three


def test_registered_in_the_root_registry() -> None:
    model = MODELS.build(dict(type='FocalTransformer', arch=NANO))
    assert isinstance(model, FocalTransformer)


@pytest.mark.parametrize('host', ['mmdet', 'mmseg', 'mmpretrain'])
def test_hosts_find_it_under_the_same_name(host: str) -> None:
    registry = pytest.importorskip(f'{host}.registry').MODELS
    assert registry.get('FocalTransformer') is FocalTransformer


def test_the_chosen_backend_is_in_the_run_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, '_logged', set())
    logger = MMLogger.get_instance('some_run', logger_name='some_run')
    handler = logging.StreamHandler(stream := io.StringIO())
    logger.addHandler(handler)
    nano()(torch.randn(1, 3, 32, 32))
    logger.removeHandler(handler)
    assert stream.getvalue().count("focal attention on cpu uses 'chunked'") == 1


def test_checkpoints_hold_parameters_only() -> None:
    model = nano(use_shift=True)
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize('size', [(64, 64), (25, 42), (61, 127), (1, 1), (224, 33)])
@pytest.mark.parametrize('embed', [False, True])
def test_any_input_size(size: tuple[int, int], embed: bool) -> None:
    model = nano(use_conv_embed=embed, **DENSE)
    outs = model(torch.randn(1, 3, *size))
    height, width = size
    for stage, out in enumerate(outs):
        stride = 4 * 2**stage
        assert out.shape == (1, 8 * 2**stage, -(-height // stride), -(-width // stride))
        assert out.isfinite().all()


def test_input_size_means_zero_padding() -> None:
    """Incomplete patches are filled with zeros, so padding the image changes nothing."""
    model, x = nano(), torch.randn(2, 3, 61, 90)
    padded = torch.nn.functional.pad(x, (0, 2, 0, 3))
    for ours, explicit in zip(model(x), model(padded), strict=True):
        assert torch.equal(ours, explicit)


# Every option that changes what is computed, away from its default.
OPTIONS = [
    dict(window_size=5),
    dict(window_size=(7, 7, 7, 4)),
    dict(focal_levels=(3, 2, 2, 2)),
    dict(focal_levels=(1, 1, 1, 1)),
    dict(focal_levels=(4, 4, 4, 4)),
    dict(focal_windows=(9, 7, 5, 3)),
    dict(expand_sizes=(3, 3, 3, 3)),
    dict(expand_sizes=(0, 1, 7, 5)),
    dict(expand_layer='even'),
    dict(expand_layer='odd'),
    dict(pool_method='conv'),
    dict(pool_method='mean'),
    dict(pool_method='max'),
    dict(pool_method='none'),
    dict(use_conv_embed=True),
    dict(use_shift=True),
    dict(use_pre_norm=True),
    dict(layer_scale_init=1e-4),
    dict(abs_pos_embed_size=(6, 11)),
    dict(mlp_ratio=2.0),
    dict(qkv_bias=False),
    dict(qk_scale=0.9),
    dict(in_channels=4),
    dict(arch=dict(NANO, num_heads=(2, 2, 2, 2))),
]


@pytest.mark.parametrize('option', OPTIONS, ids=str)
def test_every_option_has_an_effect_and_gradients(option: dict) -> None:
    x = torch.randn(2, 4, 250, 187)
    default = nano()(x[:, :3])
    model = nano(**option).train()
    outs = model(x[:, : option.get('in_channels', 3)])
    assert any((a - b).abs().max() > 1e-3 for a, b in zip(outs, default, strict=True))
    # A linear loss on a normalized map would give zero gradients.
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize('value', [None, False, 0])
def test_unset_qk_scale(value: float | None) -> None:
    assert nano(qk_scale=value).layers[2].blocks[0].attn.scale == 16**-0.5


@pytest.mark.parametrize('rate', ['drop_rate', 'attn_drop_rate', 'drop_path_rate'])
def test_rates_act_in_training_only(rate: str) -> None:
    model, plain, x = nano(**{rate: 0.5}), nano(), torch.randn(2, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(model(x), plain(x), strict=True))
    model.train()
    assert not torch.equal(model(x)[3], model(x)[3])


def test_drop_path_grows_linearly() -> None:
    model = FocalTransformer('tiny', drop_path_rate=0.2)
    rates = [block.drop_path.drop_prob for stage in model.layers for block in stage.blocks]
    assert rates == pytest.approx([0.2 * i / 11 for i in range(12)])


def test_expand_layer_drops_the_table() -> None:
    model = nano(expand_layer='even')
    tables = [
        block.attn.relative_position_bias_table_to_neighbors is not None
        for block in model.layers[2].blocks
    ]
    assert tables == [False, True]


def test_shift_is_skipped_on_small_maps() -> None:
    arch = dict(NANO, depths=(2, 1, 1, 1))
    shifted, plain = nano(arch=arch, use_shift=True), nano(arch=arch)
    small, large = torch.randn(1, 3, 28, 90), torch.randn(1, 3, 32, 90)
    assert torch.equal(shifted(small)[0], plain(small)[0])
    assert not torch.equal(shifted(large)[0], plain(large)[0])


def test_absolute_positions_are_resized() -> None:
    model = nano(abs_pos_embed_size=8)
    assert model.absolute_pos_embed.shape == (1, 64, 8)
    x = torch.randn(1, 8, 8, 8)
    same = model._add_pos_embed(x) - x
    torch.testing.assert_close(same, model.absolute_pos_embed.view(1, 8, 8, 8))
    torch.nn.init.constant_(model.absolute_pos_embed, 0.5)
    resized = model._add_pos_embed(torch.zeros(1, 5, 13, 8))
    torch.testing.assert_close(resized, torch.full((1, 5, 13, 8), 0.5))


def frozen_names(model: FocalTransformer) -> set[str]:
    return {name for name, p in model.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 4])
def test_frozen_stages(frozen_stages: int) -> None:
    model = nano(frozen_stages=frozen_stages, abs_pos_embed_size=8, drop_rate=0.5)
    prefixes = ['patch_embed', 'absolute_pos_embed'] if frozen_stages >= 0 else []
    prefixes += [f'{kind}{i}' for i in range(frozen_stages) for kind in ('layers.', 'norm')]
    expected = {
        name for name, _ in model.named_parameters() if name.startswith(tuple(prefixes or ['-']))
    }
    assert frozen_names(model) == expected  # from construction on, before any optimizer
    assert model.train() is model
    assert frozen_names(model) == expected
    assert model.pos_drop.training == (frozen_stages < 0)
    assert [stage.training for stage in model.layers] == [i >= frozen_stages for i in range(4)]


def test_norm_eval() -> None:
    model = nano(norm_eval=True, use_pre_norm=True).train()
    norms = (torch.nn.LayerNorm, torch.nn.GroupNorm)
    assert model.training
    assert all(m.training != isinstance(m, norms) for m in model.modules())


@pytest.mark.parametrize('frozen_stages', [-1, 1])
def test_checkpointing_changes_nothing(frozen_stages: int) -> None:
    x = torch.randn(1, 3, 64, 96)
    results = []
    for with_cp in (False, True):
        model = nano(with_cp=with_cp, frozen_stages=frozen_stages).train()
        outs = model(x)
        sum(out.square().sum() for out in outs).backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        results.append([*outs, *gradients])
    for plain, recomputed in zip(*results, strict=True):
        assert plain is not None
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize('frozen_stages', [0, 1])
def test_checkpointing_covers_every_block(
    frozen_stages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recomputed = []
    monkeypatch.setattr(
        'mmfocal.models.focal_transformer.checkpoint',
        lambda call, block, x, use_reentrant: recomputed.append(block) or call(block, x),
    )
    model = nano(with_cp=True, frozen_stages=frozen_stages).train()
    model(torch.randn(1, 3, 64, 64))
    trained = [block for stage in model.layers[frozen_stages:] for block in stage.blocks]
    assert set(trained) <= set(recomputed)
    recomputed.clear()
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64))
    assert not recomputed


def test_no_parameter_is_unused() -> None:
    model = nano(out_indices=(0, 1)).train()
    outs = model(torch.randn(1, 3, 64, 64))
    assert [out.shape[1] for out in outs] == [8, 16]
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name


def test_layer_depth() -> None:
    model = FocalTransformer('tiny')
    depths = {
        'backbone.patch_embed.proj.weight': 0,
        'backbone.absolute_pos_embed': 0,
        'backbone.layers.0.blocks.0.attn.qkv.weight': 1,
        'backbone.layers.0.blocks.1.mlp.fc1.bias': 2,
        'backbone.layers.0.downsample.proj.weight': 2,
        'backbone.layers.2.blocks.5.norm1.weight': 10,
        'backbone.layers.3.blocks.1.norm1.weight': 12,
        'backbone.norm3.weight': 13,
        'head.fc.weight': 13,
    }
    for name, depth in depths.items():
        assert model.get_layer_depth(name, prefix='backbone.') == (depth, 14), name


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        (dict(arch='huge'), "arch must be one of tiny, small, base, large, got 'huge'"),
        (dict(arch=None), 'arch must be a name or a dict of embed_dims.*got None'),
        (dict(arch=dict(depths=(1, 1, 1, 1))), 'arch must be a name or a dict of embed_dims'),
        (dict(arch=dict(NANO, embed_dims=0)), 'arch.embed_dims must be a positive int, got 0'),
        (dict(arch=dict(NANO, depths=(1, 1))), 'arch.depths must be four positive ints'),
        (dict(arch=dict(NANO, depths=2)), 'arch.depths must be four positive ints, got 2'),
        (dict(arch=dict(NANO, depths=(1.5, 1, 1, 1))), 'arch.depths must be four positive ints'),
        (
            dict(arch=dict(NANO, num_heads=(3, 1, 1, 1))),
            r'num_heads\[0\] must be a divisor.*got 3',
        ),
        (dict(in_channels=0), 'in_channels must be a positive int, got 0'),
        (dict(window_size=(7, 7)), r'window_size must be an int or four ints.*got \(7, 7\)'),
        (dict(window_size=7.0), 'window_size must be an int or four ints.*got 7.0'),
        (dict(window_size=0), r'window_size\[0\] must be at least 1, got 0'),
        (dict(focal_levels=(2, 2, 2, 5)), r'focal_levels\[3\] must be .*got 5'),
        (dict(focal_windows=(7, 4, 3, 1)), r'focal_windows\[1\] must be odd .*got 4'),
        (dict(focal_windows=None), 'focal_windows must be an int or four ints.*got None'),
        (dict(expand_sizes=(3, 3, 8, 0)), r'expand_sizes\[2\] must lie .*got 8'),
        (dict(expand_layer='none'), "expand_layer must be one of all, even, odd, got 'none'"),
        (dict(pool_method='avg'), "pool_method must be one of fc, conv.*got 'avg'"),
        (dict(attn_impl='flash'), "attn_impl must be one of auto.*got 'flash'"),
        (dict(out_indices=(0, 4)), r'out_indices must be .* ascending stages .*got \(0, 4\)'),
        (dict(out_indices=3), 'out_indices must be a sequence .*got 3'),
        (dict(out_indices=()), 'out_indices must be a sequence'),
        (dict(out_indices=(1, 1)), 'out_indices must be a sequence of ascending'),
        (dict(out_indices=(2, 0)), 'out_indices must be a sequence of ascending'),
        (dict(frozen_stages=5), r'frozen_stages must be an int in -1..4, got 5'),
        (dict(frozen_stages=0.5), r'frozen_stages must be an int in -1..4, got 0.5'),
        (dict(drop_path_rate=1.0), r'drop_path_rate must be a number in \[0, 1\), got 1.0'),
        (dict(drop_path_rate=None), 'drop_path_rate must be a number'),
        (dict(drop_rate=-0.1), 'drop_rate must be a number'),
        (dict(attn_drop_rate=2), 'attn_drop_rate must be a number'),
        (dict(mlp_ratio=0.01), 'mlp_ratio must be a number of at least .*got 0.01'),
        (dict(mlp_ratio='4'), "mlp_ratio must be .*got '4'"),
        (dict(qk_scale=-1), 'qk_scale must be positive, or None.*got -1'),
        (dict(qk_scale='x'), 'qk_scale must be positive'),
        (dict(layer_scale_init='1e-4'), 'layer_scale_init must be a number or None'),
        (dict(abs_pos_embed_size=(7, 7, 7)), 'abs_pos_embed_size must be an int or'),
        (dict(abs_pos_embed_size=2.5), 'abs_pos_embed_size must be an int or'),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else '',
)
def test_values_that_make_no_sense(cfg: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FocalTransformer(**{'arch': NANO, **cfg})


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_autocast_trains(dtype: torch.dtype) -> None:
    arch = dict(NANO, depths=(2, 1, 1, 1))  # the first stage's second block is shifted
    model, x = nano(arch=arch, use_shift=True).train(), torch.randn(2, 3, 96, 64)
    with torch.autocast('cpu', dtype=dtype):
        outs = model(x)
    sum((out.float() * torch.randn(out.shape)).mean() for out in outs).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
    for half, full in zip(outs, model(x), strict=True):
        # Layers in half precision follow each other; the maps are normalized to about 1.
        assert (half - full).abs().mean() < 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize('impl', ['reference', 'sdpa', 'chunked'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_model(impl: str, dtype: torch.dtype) -> None:
    model, x = nano(attn_impl=impl, **DENSE), torch.randn(1, 3, 64, 96)
    full = model(x)
    for half, exact in zip(model.to(dtype)(x.to(dtype)), full, strict=True):
        assert half.dtype == dtype
        assert (half - exact).abs().mean() < 32 * torch.finfo(dtype).eps


def test_meta_device_and_flop_counter() -> None:
    with torch.device('meta'):
        outs = FocalTransformer(NANO, **DENSE)(torch.empty(2, 3, 64, 96))
    assert outs[3].shape == (2, 64, 2, 3)
    analysis = get_model_complexity_info(nano(), input_shape=(3, 64, 64), show_table=False)
    assert analysis['flops'] > 0


def check_compiled(backend: str) -> None:
    arch = dict(NANO, depths=(2, 1, 1, 1))  # the first stage's second block is shifted
    model = nano(arch=arch, use_shift=True, focal_levels=(2, 3, 2, 2)).train()
    x = torch.randn(2, 3, 66, 98)

    def run(forward) -> list[Tensor]:
        model.zero_grad()
        outs = forward(x)
        sum((out * out.detach().sin()).sum() for out in outs).backward()
        return [*(out.detach() for out in outs), *(p.grad.clone() for p in model.parameters())]

    eager = run(model)
    torch._dynamo.reset()
    compiled = run(torch.compile(model, fullgraph=True, backend=backend))
    for plain, ours in zip(eager, compiled, strict=True):
        assert (plain - ours).abs().max() <= 1e-4 * plain.abs().max()


def test_compiles_as_one_graph() -> None:
    check_compiled('aot_eager')


@pytest.mark.slow
def test_compiles_with_inductor() -> None:
    check_compiled('inductor')


@pytest.mark.parametrize('impl', ['auto', 'sdpa'])
def test_exports(impl: str) -> None:
    model, x = nano(attn_impl=impl, **DENSE), torch.randn(1, 3, 64, 96)
    exported = torch.export.export(model, (x,)).module()
    for plain, ours in zip(model(x), exported(x), strict=True):
        torch.testing.assert_close(plain, ours)

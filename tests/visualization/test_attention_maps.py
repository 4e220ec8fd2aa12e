# SPDX-License-Identifier: Apache-2.0
"""Maps hold the attention that the model computes, at the positions of the keys."""

import numpy as np
import pytest
import torch
from torch import nn

from mmfocal import FocalTransformer
from mmfocal.ops.focal_attention.geometry import key_index
from mmfocal.visualization.attention_maps import attention_map, attention_weights, record_call

ARCH = dict(embed_dims=8, depths=(2, 1, 1, 1), num_heads=(2, 2, 2, 2))
SETTINGS = [
    dict(),
    dict(use_shift=True),
    dict(focal_levels=(3, 2, 2, 2), focal_windows=(3, 3, 3, 1)),
    dict(pool_method='none', expand_sizes=(0, 0, 0, 0)),
]


def make_model(**settings) -> FocalTransformer:
    model = FocalTransformer(ARCH, drop_path_rate=0.0, attn_impl='reference', **settings).eval()
    for name, parameter in model.named_parameters():
        if 'bias_table' in name or 'qkv' in name:
            nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize('settings', SETTINGS)
def test_weights_give_the_output_of_the_layer(settings):
    """The values, averaged with these weights, equal the output of the layer's attention."""
    model = make_model(**settings)
    layer, outputs = model.layers[0].blocks[1].attn, []
    handle = layer.proj.register_forward_pre_hook(lambda _, x: outputs.append(x[0]))
    call = record_call(model, layer, torch.randn(3, 100, 130))
    handle.remove()
    (height, width), w = call.map_size, 7
    assert (height, width) == (28, 35) and call.shift == (3 if settings.get('use_shift') else 0)
    out = outputs[0].view(height // w, w, width // w, w, 8).transpose(1, 2).reshape(-1, 49, 8)
    values = layer.qkv(call.tokens)[:, 16:]
    values = torch.cat([values, values.new_zeros(1, 8)]).unflatten(1, (2, 4)).transpose(0, 1)
    index = key_index(layer.geometry, height, width, torch.device('cpu'))
    for window in (0, 7, 19):
        weights = attention_weights(layer, call, window)
        found = (weights @ values[:, index[window]]).transpose(0, 1).flatten(1)
        assert torch.allclose(found, out[window], atol=1e-5)


def test_levels_add_up_and_lie_around_the_query():
    model = make_model()
    found = attention_map(model, torch.randn(3, 224, 224), query=(117, 121))
    fine, coarse = found.levels
    assert fine.shape == coarse.shape == (56, 56) and found.stride == 4
    assert found.query == (30, 29) and found.window == (slice(28, 35), slice(28, 35))
    assert sum(found.shares) == pytest.approx(1, abs=1e-5)
    assert np.nansum(fine) == pytest.approx(found.shares[0], abs=1e-5)
    rows, columns = np.nonzero(~np.isnan(fine))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (25, 37, 25, 37)
    assert np.nansum(coarse) / 49 == pytest.approx(found.shares[1], abs=1e-5)
    rows, columns = np.nonzero(~np.isnan(coarse))  # 7 windows each way around window 4 of 0 to 7
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (7, 55, 7, 55)


def test_a_border_window_wraps_around_on_the_fine_level_only():
    fine, coarse = attention_map(make_model(), torch.randn(3, 224, 224), query=(0, 0)).levels
    keys = ~np.isnan(fine)
    assert keys[:10, :10].all() and keys[-3:, -3:].all() and not keys[10:-3].any()
    assert not np.isnan(coarse[:28, :28]).any() and np.isnan(coarse[28:]).all()


def test_heads_differ_and_their_mean_is_the_default():
    model, image = make_model(), torch.randn(3, 64, 64)
    heads = [attention_map(model, image, (20, 30), head=head).levels[0] for head in (0, 1)]
    assert np.nanmax(np.abs(heads[0] - heads[1])) > 1e-3
    mean = attention_map(model, image, (20, 30)).levels[0]
    assert np.allclose(mean, (heads[0] + heads[1]) / 2, equal_nan=True, atol=1e-6)


def test_a_shifted_block_looks_around_the_query_in_the_image():
    model = make_model(use_shift=True, pool_method='none', expand_sizes=(0, 0, 0, 0))
    image = torch.randn(3, 112, 112)
    (fine,) = attention_map(model, image, (40, 40), block=1).levels  # token 10: window 10 to 16
    rows, columns = np.nonzero(~np.isnan(fine))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 16, 10, 16)


@pytest.mark.parametrize(
    ('choice', 'message'),
    [
        (dict(stage=4), 'stage=4: expected 0 to 3'),
        (dict(block=2), 'block=2: expected 0 to 1'),
        (dict(head=2), 'head=2: expected 0 to 1'),
        (dict(query=(64, 0)), 'query x=64: expected 0 to 63'),
        (dict(query=(0, -1)), 'query y=-1: expected 0 to 31'),
    ],
)
def test_bad_choices_are_named(choice, message):
    with pytest.raises(ValueError, match=message):
        attention_map(make_model(), torch.zeros(3, 32, 64), **{'query': (0, 0), **choice})

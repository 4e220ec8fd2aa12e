# SPDX-License-Identifier: Apache-2.0
"""Every backend against the reference, and the reference against loops over single keys."""

import math
import subprocess
import sys
from collections import Counter
from itertools import product

import pytest
import torch
from torch import Tensor

from mmfocal.ops.focal_attention import (
    FocalBias,
    FocalGeometry,
    FocalInputs,
    api,
    focal_attention,
)
from mmfocal.ops.focal_attention.bias import bias_tables, combined_bias
from mmfocal.ops.focal_attention.geometry import MASKED
from mmfocal.ops.focal_attention.impl.reference import relative_bias
from tests.helpers.attention import (
    CASES,
    CPU_IMPLS,
    FAST_IMPLS,
    call,
    check_half_precision,
    check_rounds_as_well_as_reference,
    make_inputs,
    run,
    to_bias,
    to_tokens,
    with_large_logits,
)


@pytest.mark.parametrize('impl', FAST_IMPLS)
@pytest.mark.parametrize('case', CASES)
def test_equals_reference_fp64(case: str, impl: str) -> None:
    geometry, windows, shift = CASES[case]
    inputs = make_inputs(geometry, windows)
    truth = run(inputs, geometry, 'reference', torch.float64, shift=shift)
    ours = run(inputs, geometry, impl, torch.float64, shift=shift)
    # Worst-case rounding of a sum of n terms is n eps; the longest sums are over all positions.
    terms = inputs['qkv'][..., 0].numel() * geometry.window_size**2
    for name, value in truth.items():
        bound = terms * torch.finfo(torch.float64).eps * value.abs().max()
        error = (ours[name] - value).abs().max()
        assert error <= bound, f'{name}: error {error:.1e}, bound {bound:.1e}'


@pytest.mark.parametrize('impl', FAST_IMPLS)
@pytest.mark.parametrize('case', CASES)
def test_rounds_as_well_as_reference_fp32(case: str, impl: str) -> None:
    check_rounds_as_well_as_reference(case, impl)


def attend_by_loops(inputs: dict[str, Tensor], geometry: FocalGeometry, scale: float) -> Tensor:
    """Focal attention one query and one key at a time, for one image without shift."""
    w, e, f = geometry.window_size, geometry.expand_size, geometry.focal_window
    heads = inputs['window'].shape[1]
    height, width, channels = inputs['qkv'].shape[1:]
    qkv = inputs['qkv'][0].view(height, width, 3, heads, -1)
    out = torch.empty(height, width, heads, channels // 3 // heads, dtype=qkv.dtype)
    for row, col, head in product(range(height), range(width), range(heads)):
        top, left = row // w * w, col // w * w
        qr, qc = row - top, col - left
        keys = []  # (key, value, added to the logit)
        for kr, kc in product(range(w), range(w)):
            index = (qr - kr + w - 1) * (2 * w - 1) + qc - kc + w - 1
            k, v = qkv[top + kr, left + kc, 1:, head]
            keys.append((k, v, inputs['window'][index, head]))
        place = 0
        moves = [(e, e), (e, -e), (-e, e), (-e, -e)] if e else []
        for (dy, dx), kr, kc in product(moves, range(w), range(w)):
            if 0 <= kr + dy < w and 0 <= kc + dx < w:
                continue
            k, v = qkv[(top + dy + kr) % height, (left + dx + kc) % width, 1:, head]
            keys.append((k, v, inputs['neighbors'][0, head, qr * w + qc, place]))
            place += 1
        for level in geometry.coarse_levels:
            coarse = inputs[f'coarse_kv.{level}'][0]
            side, step = f + 2**level - 1, 2**level
            for kr, kc in product(range(side), range(side)):
                y = top // w * step - f // 2 + kr
                x = left // w * step - f // 2 + kc
                index = (qr - kr + side - 1) * (w + side - 1) + qc - kc + side - 1
                added = inputs[f'coarse.{level}'][head, index]
                inside = 0 <= y < coarse.shape[0] and 0 <= x < coarse.shape[1]
                kv = coarse[y, x] if inside else torch.zeros_like(coarse[0, 0])
                k, v = kv.view(2, heads, -1)[:, head]
                keys.append((k, v, added if inside else added + MASKED))
        query = qkv[row, col, 0, head]
        logits = torch.stack([scale * query @ k + added for k, _, added in keys])
        out[row, col, head] = logits.softmax(0) @ torch.stack([v for _, v, _ in keys])
    return out.flatten(2)


@pytest.mark.parametrize(
    'geometry',
    [FocalGeometry(3, 1, 3, 2), FocalGeometry(3, 2, 1, 3), FocalGeometry(2, 2, 5, 2)],
    ids=str,
)
def test_reference_equals_loops(geometry: FocalGeometry) -> None:
    inputs = make_inputs(geometry, (2, 3))
    expected = attend_by_loops(inputs, geometry, scale=0.4)
    error = (call(inputs, geometry, 'reference')[0] - expected).abs().max()
    assert error < 1e-13


def test_key_counts_of_the_paper_window() -> None:
    geometry = FocalGeometry(7, 3)
    places = Counter(
        (kept // 7 + dy, kept % 7 + dx) for dy, dx, keeps in geometry.moves for kept in keeps
    )
    assert geometry.num_neighbors == sum(places.values()) == 132
    assert len(places) == 13 * 13 - 7 * 7 == 120
    assert sorted(places.values())[-13:] == [1] + [2] * 12


@pytest.mark.parametrize(('w', 'e'), [(7, 3), (7, 1), (5, 4), (6, 3), (4, 4)])
def test_duplicates_and_holes(w: int, e: int) -> None:
    first, second = FocalGeometry(w, e).square_sources
    none = w * w + FocalGeometry(w, e).num_neighbors
    assert sum(key != none for key in second) == 4 * e * max(0, w - 2 * e)
    assert sum(key == none for key in first) == 4 * e * max(0, 2 * e - w)
    assert sorted(key for key in first + second if key != none) == list(range(none))


def test_bias_tables_by_index_arithmetic() -> None:
    w, side = 3, 4
    own, coarse = torch.randn((2 * w - 1) ** 2, 2), torch.randn(2, (w + side - 1) ** 2)
    own_full = relative_bias(own.t(), w, w)
    coarse_full = relative_bias(coarse, w, side)
    for qr, qc in product(range(w), repeat=2):
        for kr, kc in product(range(w), repeat=2):
            index = (qr - kr + w - 1) * (2 * w - 1) + qc - kc + w - 1
            assert torch.equal(own_full[:, qr * w + qc, kr * w + kc], own[index])
        for kr, kc in product(range(side), repeat=2):
            index = (qr - kr + side - 1) * (w + side - 1) + qc - kc + side - 1
            assert torch.equal(coarse_full[:, qr * w + qc, kr * side + kc], coarse[:, index])


def test_combined_bias_of_duplicates_is_logaddexp() -> None:
    geometry = FocalGeometry(7, 3)
    own, neighbors = torch.randn(169, 1), torch.randn(1, 1, 49, 132)
    combined = combined_bias(FocalBias(own, neighbors), geometry)
    total = relative_bias(own.t(), 7, 7).exp().sum(-1) + neighbors[0].exp().sum(-1)
    torch.testing.assert_close(combined.exp().sum(-1), total)


@pytest.mark.parametrize('impl', CPU_IMPLS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_bias_and_softmax_stay_fp32_in_half_precision(impl: str, dtype: torch.dtype) -> None:
    geometry, windows, _shift = CASES['detection']
    inputs = {k: v.float() for k, v in make_inputs(geometry, windows).items()}
    # Differences between biases vanish in half precision once the biases are this large.
    tables = [k for k in inputs if k == 'window' or k == 'neighbors' or k.startswith('coarse.')]
    inputs |= {k: inputs[k] + 3000 for k in tables}
    inputs |= {k: v.to(dtype) for k, v in inputs.items() if k not in tables}
    with torch.autocast('cpu', dtype=dtype):
        out = call(inputs, geometry, impl)
    exact = {k: v.double() for k, v in inputs.items()}
    truth = call(exact, geometry, 'reference')
    assert out.dtype == dtype
    # fp32 logits of 3000 have an absolute error of 2^-13; the output is rounded once more.
    bound = (2**-11 + torch.finfo(dtype).eps) * truth.abs().max()
    assert (out.double() - truth).abs().max() <= bound


# Rounded to half precision, in units of eps: the output or a gradient of a map, half a unit each.
# PyTorch's attention also rounds the bias, the weights and the gradients of logits.
ROUNDINGS = {'reference': 0.5, 'chunked': 0.5, 'sdpa': 4}


@pytest.mark.parametrize('impl', CPU_IMPLS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('case', ['detection', 'shift'])
def test_large_logits_in_half_precision(case: str, dtype: torch.dtype, impl: str) -> None:
    geometry, windows, shift = CASES[case]
    inputs = with_large_logits(make_inputs(geometry, windows))
    check_half_precision(inputs, geometry, impl, dtype, 'cpu', shift, ROUNDINGS[impl])


@pytest.mark.parametrize('impl', CPU_IMPLS)
def test_empty_batch(impl: str) -> None:
    geometry, windows, _shift = CASES['detection']
    inputs = make_inputs(geometry, windows)
    empty = {k: v[:0] if 'kv' in k else v for k, v in inputs.items()}
    assert call(empty, geometry, impl).shape == (0, 21, 35, 10)


@pytest.mark.parametrize('impl', ['reference', 'sdpa'])
def test_attention_dropout(impl: str) -> None:
    geometry, windows, _shift = CASES['local only']
    inputs = make_inputs(geometry, windows)
    assert torch.equal(
        call(inputs, geometry, impl, dropout_p=0.0), call(inputs, geometry, impl, dropout_p=0.0)
    )
    outs = torch.stack([call(inputs, geometry, impl, dropout_p=0.5) for _ in range(400)])
    plain = call(inputs, geometry, impl)
    assert (outs[0] - plain).abs().max() > 0.1
    # The mean over n runs estimates the output; 6 standard errors leave no room for bad luck.
    standard_error = outs.std(0) / math.sqrt(len(outs))
    assert ((outs.mean(0) - plain).abs() <= 6 * standard_error + 1e-9).all()


def test_constants_made_in_inference_mode_serve_training() -> None:
    geometry = FocalGeometry(5, 1)  # no other test uses it
    inputs = make_inputs(geometry, (2, 2))
    with torch.inference_mode():
        call(inputs, geometry, 'sdpa')
    grads = run(inputs, geometry, 'sdpa', torch.float64)
    assert grads['d_neighbors'].abs().sum() > 0


def test_environment_overrides_auto_only(monkeypatch: pytest.MonkeyPatch) -> None:
    geometry, windows, _shift = CASES['window only']
    inputs = make_inputs(geometry, windows)
    monkeypatch.setenv('MMFOCAL_ATTN_IMPL', 'no-such')
    with pytest.raises(ValueError, match=r"MMFOCAL_ATTN_IMPL must be one of auto.*'no-such'"):
        call(inputs, geometry, 'auto')
    call(inputs, geometry, 'sdpa')
    monkeypatch.setenv('MMFOCAL_ATTN_IMPL', 'reference')
    assert torch.equal(call(inputs, geometry, 'auto'), call(inputs, geometry, 'reference'))


def test_explicit_choice_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    geometry, windows, _shift = CASES['window only']
    inputs = make_inputs(geometry, windows)
    picky = api.BACKENDS['sdpa']._replace(unsupported_reasons=lambda _: ['too cold', 'too late'])
    monkeypatch.setitem(api.BACKENDS, 'sdpa', picky)
    monkeypatch.setattr(api, 'auto_order', lambda device_type: ('sdpa', 'reference'))
    with pytest.raises(ValueError, match="'sdpa' cannot run here: too cold; too late"):
        call(inputs, geometry, 'sdpa')
    assert torch.equal(call(inputs, geometry, 'auto'), call(inputs, geometry, 'reference'))


def test_auto_announces_its_choice_once(monkeypatch: pytest.MonkeyPatch) -> None:
    geometry, windows, _shift = CASES['window only']
    inputs = make_inputs(geometry, windows)
    messages: list[str] = []
    monkeypatch.setattr(api, 'announce', messages.append)
    monkeypatch.setattr(api, '_logged', set())
    call(inputs, geometry, 'auto')
    call(inputs, geometry, 'auto')
    assert messages == ["focal attention on cpu uses 'chunked'"]
    call(inputs, geometry, 'auto', dropout_p=0.5)
    expected = "focal attention on cpu uses 'sdpa' ('chunked': attention dropout is not supported)"
    assert messages[1:] == [expected]
    for size in (5, 6):  # reasons may contain sizes
        api.log_choice('sdpa', 'cuda', [f'{size} tokens are too many'])
    expected = "focal attention on cuda uses 'sdpa' ('triton': 5 tokens are too many)"
    assert messages[2:] == [expected]


def test_compiled_calls_announce_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    geometry, windows, _shift = CASES['window only']
    messages: list[str] = []
    monkeypatch.setattr(api, 'announce', messages.append)
    monkeypatch.setattr(api, '_logged', set())
    compiled = torch.compile(
        lambda inputs: call(inputs, geometry, 'auto'), fullgraph=True, backend='eager'
    )
    for _ in range(2):
        compiled(make_inputs(geometry, windows))
    (message,) = messages
    assert message.startswith("focal attention on cpu uses 'sdpa' ('chunked': compiling")


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(window_size=0), 'window_size must be at least 1, got 0'),
        (dict(window_size=7, expand_size=8), 'expand_size must lie between 0 and .* 7, got 8'),
        (dict(window_size=7, focal_window=4), 'focal_window must be odd and positive, got 4'),
        (dict(window_size=7, focal_level=5), 'focal_level must be .* 7, got 5'),
        (dict(window_size=7, focal_level=0), 'focal_level must be at least 1'),
    ],
)
def test_bad_geometry(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FocalGeometry(**settings)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(qkv=torch.zeros(2, 20, 35, 30)), 'multiples of the window 7, got 20x35'),
        (dict(qkv=torch.zeros(2, 0, 35, 30)), 'multiples of the window 7, got 0x35'),
        (dict(window=torch.zeros(169, 4)), '30 channels, not a multiple of 3 x 4 heads'),
        (
            dict(window=torch.zeros(168, 2)),
            r'bias.window must have shape \(169, 2\), got \(168, 2\)',
        ),
        (dict(neighbors=torch.zeros(1, 2, 49, 120)), 'bias.neighbors must have shape'),
        (dict(neighbors=None), 'bias.neighbors must be given if and only if expand_size > 0'),
        ({'coarse.0': torch.zeros(2, 169)}, r'bias.coarse\[0\] must have shape \(2, 441\)'),
        ({'coarse_kv.0': torch.zeros(2, 3, 4, 20)}, r'qkv must have shape \(2, 750, 30\)'),
    ],
)
def test_bad_shapes(change: dict, message: str) -> None:
    geometry, windows, _shift = CASES['detection']
    with pytest.raises(ValueError, match=message):
        call(make_inputs(geometry, windows) | change, geometry, 'auto')


def test_missing_coarse_table() -> None:
    geometry, windows, _ = CASES['detection']
    inputs = make_inputs(geometry, windows)
    bias = FocalBias(inputs['window'], inputs['neighbors'])
    call = FocalInputs(to_tokens(inputs, geometry), (21, 35), bias, geometry, scale=1.0)
    with pytest.raises(ValueError, match='focal_level 2 needs 1 coarse tables, got 0'):
        focal_attention(call)


def test_bad_shift() -> None:
    geometry, windows, _ = CASES['window only']
    with pytest.raises(ValueError, match='shift must lie between 0 and window_size - 1, got 7'):
        call(make_inputs(geometry, windows), geometry, 'auto', shift=7)


@pytest.mark.parametrize('heads', [1, 2])
def test_gradients_of_tables_have_their_strides(heads: int) -> None:
    """Otherwise distributed training warns and copies them."""
    geometry, windows, _ = CASES['detection']
    tables = make_inputs(geometry, windows, heads=heads)
    bias = to_bias({k: v.requires_grad_() for k, v in tables.items()}, geometry)
    combined_bias(bias, geometry).sum().backward()
    for table in bias_tables(bias):
        assert table.grad.stride() == table.stride()


def test_needs_torch_only() -> None:
    """The op imports and runs where triton, mmengine and every mm* host are absent."""
    code = (
        'import sys\n'
        "absent = ['triton', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain']\n"
        'sys.modules.update(dict.fromkeys(absent))\n'  # None: importing it raises
        'import importlib.util, pathlib, types, torch\n'
        "package = types.ModuleType('mmfocal'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['mmfocal'] = package\n"  # not its __init__, which brings the backbone
        'from mmfocal.ops.focal_attention import *\n'
        'bias = FocalBias(torch.zeros(9, 1))\n'
        'inputs = FocalInputs(torch.ones(1, 16, 6), (4, 4), bias, FocalGeometry(2), scale=1.0)\n'
        'out = focal_attention(inputs)\n'
        'print(tuple(out.shape))'
    )
    package = api.__file__.rsplit('/ops/', 1)[0]
    result = subprocess.run(
        [sys.executable, '-c', code, package], capture_output=True, text=True, check=False
    )
    assert result.stdout.strip() == '(1, 4, 4, 2)', result.stderr

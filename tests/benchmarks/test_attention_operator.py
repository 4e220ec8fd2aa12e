# SPDX-License-Identifier: Apache-2.0
"""Attention alone: rows, the baseline's arithmetic, and the work that is counted."""

import math

import attention
import pytest
import torch
from measure import Size

from mmfocal.ops.focal_attention import FocalBias, FocalGeometry, FocalInputs, focal_attention


def test_rows(tmp_path, read_rows, capsys):
    path = tmp_path / 'rows.csv'
    options = '--sizes 64x64x1 --stages 1 4 --impls reference chunked --rounds 2 --threads 1'
    attention.main([*options.split(), '--device', 'cpu', '--csv', str(path)])
    rows = read_rows(path)
    expected = [
        (direction, stage, impl)
        for direction in ('fwd', 'bwd')
        for stage in '14'
        for impl in ('window', 'reference', 'chunked')
    ]
    assert [(row['direction'], row['stage'], row['impl']) for row in rows] == expected
    for row in rows:
        assert row['map'] == ('21x21x96' if row['stage'] == '1' else '7x7x768')
        assert (float(row['ratio']) == 1) == (row['impl'] == 'window')
        rate, reachable = float(row['gflop_per_s']), float(row['roofline_gflop_per_s'])
        assert math.isclose(float(row['of_roofline']), rate / reachable, rel_tol=1e-4)
        assert float(row['gbyte_per_s']) > 0
    assert 'GFLOP/s of a matrix product fp32' in capsys.readouterr().out


def make_case(**changes) -> attention.Case:
    values = dict(impl='sdpa', dtype='fp32', direction='fwd', stage=1, size=Size(224, 224, 2))
    return attention.Case(**(values | dict(device='cpu') | changes))


def test_work():
    # 2 images of 56 x 56 tokens, 96 channels; 169 fine keys and 7 x 7 coarse ones
    case = make_case()
    tokens, keys = 2 * 56 * 56, 169 + 49
    assert (case.shape, case.keys) == ((2, 56, 56, 96), keys)
    flops, moved = attention.work(case)
    assert flops == 4 * tokens * keys * 96
    assert moved == 4 * (tokens * 96 * 4 + tokens // 49 * 96 * 2)
    back = attention.work(make_case(direction='bwd', dtype='bf16'))
    assert back == (2 * flops, 2 * (tokens * 96 * 7 + tokens // 49 * 96 * 4))
    window = make_case(impl='window', stage=4)
    assert (window.shape, window.keys) == ((2, 7, 7, 768), 49)
    assert attention.work(window) == (4 * 98 * 49 * 768, 4 * 98 * 768 * 4)


def test_dense_sizes_are_padded_and_look_further():
    case = make_case(size=Size(800, 1344, 1), stage=4)
    assert case.shape == (1, 28, 42, 768)
    assert case.geometry == FocalGeometry(7, 3, 7, 2)
    assert make_case(stage=4).geometry == FocalGeometry(7, 0, 1, 2)


def test_baseline_is_attention_of_the_own_window():
    qkv, table = torch.randn(2, 14, 21, 3 * 12), torch.randn(169, 3)
    out = attention.window_attention(qkv, table, 0.5)
    inputs = FocalInputs(qkv.flatten(1, 2), (14, 21), FocalBias(table), FocalGeometry(7), 0.5)
    expected = focal_attention(inputs, 'reference')
    torch.testing.assert_close(out, expected)


def test_backward_differentiates_every_input():
    gradients = attention.make_step(make_case(direction='bwd', size=Size(64, 64, 1)))()
    assert len(gradients) == 4  # tokens, three tables
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_bad_options(capsys):
    with pytest.raises(SystemExit):
        attention.parse_args(['--impls', 'auto'])
    assert "invalid choice: 'auto'" in capsys.readouterr().err

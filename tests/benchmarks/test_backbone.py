# SPDX-License-Identifier: Apache-2.0
"""Backbones compared with Swin: rows, ratios, memory, figures, unsupported cases."""

import math
import os
import subprocess
import sys
from pathlib import Path

import backbone
import pytest

from mmfocal import FocalTransformer
from mmfocal.analysis.complexity import complexity
from mmfocal.engine import read_config
from mmfocal.ops.focal_attention import api
from mmfocal.ops.focal_attention.impl import triton

TINY_RUN = '--sizes 64x64x1 --archs nano --rounds 1 --threads 1 --device cpu'


def run(options: str, path: Path) -> None:
    """Measure a nano backbone on one tiny image; rows go to ``path``."""
    backbone.main([*TINY_RUN.split(), *options.split(), '--csv', str(path)])


def test_rows(tmp_path, read_rows, capsys):
    path = tmp_path / 'rows.csv'
    run('--impls chunked sdpa --baselines swin_nano --rounds 3', path)
    rows = read_rows(path)
    models = [('swin_nano', ''), ('focal_nano', 'chunked'), ('focal_nano', 'sdpa')]
    expected = [(mode, *model) for mode in ('infer', 'train') for model in models]
    assert [(row['mode'], row['model'], row['impl']) for row in rows] == expected
    for row in rows:
        ms = [float(row[name]) for name in ('ms_min', 'ms', 'ms_max')]
        assert 0 < ms[0] <= ms[1] <= ms[2]
        assert math.isclose(float(row['images_per_s']), 1000 / ms[1], rel_tol=1e-4)
        assert row['baseline'] == 'swin_nano' and row['note'] == ''
        assert (float(row['ratio']) == 1) == (row['model'] == 'swin_nano')
        assert 0 < float(row['utilization']) < 1 and float(row['first_s']) > 0
        assert row['focal_windows'] == ('7-5-3-1' if row['impl'] else '')
        assert row['memory_mib'] == '' and row['torch'] and row['threads'] == '1'
    printed = capsys.readouterr().out
    assert 'focal_nano' in printed and 'ratio' in printed


@pytest.mark.skipif(not triton.INSTALLED, reason='needs Triton')
def test_kernels_interpreted(repo_root, tmp_path, read_rows):
    """The test needs a new process, because Triton chooses the interpreter when it is imported."""
    path = tmp_path / 'rows.csv'
    options = '--sizes 28x28x1 --archs nano --rounds 1 --threads 1 --device cpu --baselines'
    options += f' --modes infer --impls triton --csv {path}'
    subprocess.run(
        [sys.executable, repo_root / 'benchmarks/backbone.py', *options.split()],
        env=os.environ | dict(TRITON_INTERPRET='1'),
        check=True,
    )
    (row,) = read_rows(path)
    assert (row['impl'], row['note']) == ('triton', '')
    assert float(row['ms']) > 0


def test_memory_picture_and_half_precision(tmp_path, read_rows):
    path, picture = tmp_path / 'rows.csv', tmp_path / 'pictures' / 'growth.png'
    options = f'--impls sdpa --modes train --dtypes bf16 --memory --baselines --plot {picture}'
    run(options, path)
    (row,) = read_rows(path)
    assert 1 < float(row['memory_mib']) < 500
    assert (row['dtype'], row['baseline'], row['ratio'], row['memory_ratio']) == (
        'bf16',
        '',
        '',
        '',
    )
    assert picture.read_bytes()[:4] == b'\x89PNG'


def test_picture_has_panels_for_modes():
    numbers = dict(width=64, batch=1, ms=1.0)
    rows = [
        dict(model=model, impl='', dtype='fp32', mode=mode, runtime='eager', height=side)
        | numbers
        | dict(memory_mib=2.0 if mode == 'train' else None)
        for model in ('swin', 'focal')
        for mode in ('infer', 'train')
        for side in (64, 96)
    ]
    panels = [
        (axes.get_title(), axes.get_ylabel(), [line.get_label() for line in axes.lines])
        for axes in backbone.draw(rows).axes
    ]
    both = ['swin fp32 eager', 'focal fp32 eager']
    time, memory = 'time per image in ms', 'memory above base per image in MiB'
    assert panels == [
        ('infer', time, both),
        ('infer', memory, []),
        ('train', time, both),
        ('train', memory, both),
    ]


def test_what_refuses_is_left_out_with_its_reason(monkeypatch, tmp_path, read_rows):
    backend = api.BACKENDS['reference']._replace(
        unsupported_reasons=lambda inputs: ['it needs', 'another CPU']
    )
    monkeypatch.setitem(api.BACKENDS, 'reference', backend)
    path = tmp_path / 'rows.csv'
    run('--modes infer --impls reference sdpa --baselines swin_nano', path)
    swin, reference, sdpa = read_rows(path)
    assert reference['note'] == 'it needs; another CPU'
    assert reference['ms'] == reference['ratio'] == reference['utilization'] == ''
    assert float(swin['ratio']) == 1 and float(sdpa['ratio']) > 0


def test_what_cannot_be_compiled_does_not_run_uncompiled(tmp_path, read_rows):
    path = tmp_path / 'rows.csv'
    run('--modes infer --compile --impls chunked --baselines', path)
    eager, compiled = read_rows(path)
    assert (eager['runtime'], compiled['runtime']) == ('eager', 'compile')
    assert float(eager['ms']) > 0
    assert compiled['ms'] == '' and 'compiling, exporting and tracing' in compiled['note']


@pytest.mark.slow
def test_compile(tmp_path, read_rows, monkeypatch):
    monkeypatch.setitem(backbone.NANO, 'depths', (1, 1, 1, 1))
    path = tmp_path / 'rows.csv'
    run('--modes infer --compile --impls sdpa --baselines', path)
    _, compiled = read_rows(path)
    assert float(compiled['first_s']) > 10 * float(compiled['ms']) / 1000


def test_settings_follow_the_size():
    args = backbone.parse_args(['--sizes', '224x224x1', '64x512x2', '--archs', 'base'])
    how = dict(dtype='fp32', mode='infer', runtime='eager')
    for size, windows in zip(args.sizes, ((7, 5, 3, 1), (15, 13, 9, 7)), strict=True):
        swin, focal = backbone.list_cases(args, size=size, **how)
        assert (swin.model, focal.model, focal.focal_windows) == (
            'swin_tiny',
            'focal_base',
            windows,
        )
    args = backbone.parse_args(['--growth', '--focal-windows', '3', '3', '3', '3'])
    assert (args.sizes[0], args.sizes[-1]) == ((224, 224, 1), (2048, 2048, 1))
    _, focal = backbone.list_cases(args, size=args.sizes[0], **how)
    assert focal.focal_windows == (3, 3, 3, 3)
    model = backbone.build_model(focal)
    assert isinstance(model, FocalTransformer)
    assert [layer.blocks[0].geometry.expand_size for layer in model.layers] == [3, 3, 3, 3]


def test_baseline_of_the_same_size():
    how = dict(impl='sdpa', dtype='', mode='', runtime='', size=(), focal_windows=(), device='')
    small, large = (backbone.Case(f'focal_{arch}', **how) for arch in ('small', 'large'))
    names = ['swin_tiny', 'swin_small', 'timm_swin_small']
    assert backbone.baseline_of(small, names) == 'swin_small'
    assert backbone.baseline_of(large, names) == 'swin_tiny'
    assert backbone.baseline_of(large, []) == ''


def test_macs_agree_with_the_project(repo_root):
    size = backbone.Size(64, 96, 1)
    cfg = read_config(repo_root / 'configs/quickstart/focal_nano_cls.py')
    (part,) = (
        module
        for module in complexity(cfg, size[:2]).by_module('matmul-120')
        if module.name == 'backbone'
    )
    counted = backbone.macs_per_image('focal_nano', size, (7, 5, 3, 1))
    # the classifier has one output norm instead of four; norms are not counted
    assert counted == part.flops


def test_swin_of_timm(tmp_path, read_rows):
    timm = pytest.importorskip('timm')
    path = tmp_path / 'rows.csv'
    run('--impls sdpa --baselines timm_swin_tiny', path)
    rows = read_rows(path)
    assert [(row['model'], row['mode']) for row in rows] == [
        ('timm_swin_tiny', 'infer'),
        ('focal_nano', 'infer'),
        ('timm_swin_tiny', 'train'),
        ('focal_nano', 'train'),
    ]
    for swin, focal in zip(rows[::2], rows[1::2], strict=True):
        assert float(swin['ratio']) == 1
        assert math.isclose(
            float(focal['ratio']), float(focal['ms']) / float(swin['ms']), rel_tol=1e-4
        )
        assert (focal['baseline'], focal['timm']) == ('timm_swin_tiny', timm.__version__)


def test_swin_of_timm_is_fused_and_the_same_model():
    pytest.importorskip('timm')
    size = backbone.Size(224, 224, 1)
    model = backbone._timm_swin('tiny', size)
    fused = [module.fused_attn for module in model.modules() if hasattr(module, 'fused_attn')]
    assert fused == [True] * 12
    macs = backbone.macs_per_image('timm_swin_tiny', size, ())
    assert macs == backbone.macs_per_image('swin_tiny', size, ())
    assert math.isclose(macs, 4.49e9, rel_tol=1e-3)


def test_missing_libraries(monkeypatch):
    size = backbone.Size(64, 64, 1)
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(SystemExit, match=r'timm_swin_tiny needs timm.*pip install timm'):
        backbone._timm_swin('tiny', size)
    monkeypatch.setitem(sys.modules, 'mmpretrain.models', None)
    with pytest.raises(SystemExit, match=r'Swin of mmpretrain.*--baselines'):
        backbone._swin('tiny', size)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ('--impls flash', "invalid choice: 'flash'"),
        ('--archs huge', "invalid choice: 'huge'"),
        ('--sizes 224', 'HEIGHTxWIDTHxBATCH'),
        ('--growth --sizes 224x224x1', 'not allowed with'),
        ('--cuda-graphs --device cpu', '--cuda-graphs needs --device cuda'),
    ],
)
def test_bad_options(options, message, capsys):
    with pytest.raises(SystemExit):
        backbone.parse_args(options.split())
    assert message in capsys.readouterr().err


def test_nothing_is_measured_if_the_file_exists(tmp_path, capsys):
    path = tmp_path / 'old.csv'
    path.write_text('precious')
    with pytest.raises(SystemExit):
        run('', path)
    assert f'{path} exists' in capsys.readouterr().err
    assert path.read_text() == 'precious'

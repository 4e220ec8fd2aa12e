# SPDX-License-Identifier: Apache-2.0
"""Command lines: options that replace tuples, loaders without workers, unknown keys."""

from argparse import ArgumentParser
from pathlib import Path

import pytest
from mmengine.config import Config

from mmfocal.engine import add_common_arguments, load_config

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'quickstart'


def config(name: str, *options: str) -> Config:
    parser = ArgumentParser()
    parser.add_argument('config')
    add_common_arguments(parser)
    path = name if Path(name).is_file() else str(CONFIGS / f'{name}.py')
    return load_config(
        parser.parse_args([path, *(['--cfg-options', *options] if options else [])])
    )


def test_lists_replace_tuples_as_tuples():
    cfg = config(
        'focal_nano_maskrcnn',
        'train_dataloader.dataset.pipeline.2.scale=128,128',
        'model.backbone.out_indices=[0,1]',
        'model.neck.in_channels=[32,64]',
    )
    assert cfg.train_dataloader.dataset.pipeline[2].scale == (128, 128)
    assert cfg.model.backbone.out_indices in ((0, 1), [0, 1])
    assert cfg.model.neck.in_channels == [32, 64]


@pytest.mark.parametrize('task', ['maskrcnn', 'upernet', 'cls'])
def test_loaders_without_workers_do_not_keep_them(task):
    cfg = config(f'focal_nano_{task}', 'train_dataloader.num_workers=0')
    assert cfg.train_dataloader.persistent_workers is False
    assert cfg.val_dataloader.persistent_workers is True


@pytest.mark.parametrize(
    ('option', 'words'),
    [
        ('modle.backbone.drop_path_rate=0.3', "'modle' is not a known key; the nearest is model"),
        ('train_cgf.max_iters=3', 'the nearest is train_cfg'),
        ('default_hooks.chekpoint.interval=3', 'the nearest is default_hooks.checkpoint'),
        ('train_dataloader.bacth_size=3', 'the nearest is train_dataloader.batch_size'),
        ('colour=blue', "'colour' is not a known key; nothing reads it"),
    ],
)
def test_unknown_options_are_told_with_the_nearest(option, words, capsys):
    config('focal_nano_maskrcnn', option)
    told = capsys.readouterr().out
    assert f'WARNING: --cfg-options {option.split("=")[0]}: ' in told and words in told


@pytest.mark.parametrize(
    'option',
    [
        'model.backbone.with_cp=True',
        'randomness.deterministic=True',
        'train_dataloader.prefetch_factor=4',
        'default_hooks.checkpoint.max_keep_ckpts=1',
        'param_scheduler.1.end=8',
        'find_unused_parameters=True',
        'work_dir=here',
        'load_from=a.pth',
        'custom_hooks=[]',
    ],
)
def test_options_that_something_reads_are_not_told(option, capsys):
    config('focal_nano_maskrcnn', option)
    assert not capsys.readouterr().out


def test_misspelt_keys_of_a_config_are_told(tmp_path, capsys):
    path = tmp_path / 'own.py'
    path.write_text(f"_base_ = '{CONFIGS}/focal_nano_cls.py'\ncustom_hook = []\nwidth = 3\n")
    config(str(path))
    told = capsys.readouterr().out
    assert 'custom_hook in ' in told and 'is custom_hooks meant?' in told and 'width' not in told


def test_shipped_configs_have_known_keys(capsys):
    for task in ('htcpp', 'upernet', 'cls'):
        config(f'focal_nano_{task}')
    assert 'WARNING' not in capsys.readouterr().out

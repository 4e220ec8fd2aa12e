# SPDX-License-Identifier: Apache-2.0
"""Command lines: options that replace tuples, loaders without workers, unknown keys."""

import re
from argparse import ArgumentParser
from pathlib import Path

import pytest
from mmengine.config import Config

from mmfocal.engine import InputError, add_common_arguments, load_config
from mmfocal.engine.options import RUNNER_KEYS, warn_of_misspelled
from mmfocal.errors import MissingFileError

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'quickstart'


def config(name: str, *options: str, launcher: str = 'none') -> Config:
    parser = ArgumentParser()
    parser.add_argument('config')
    add_common_arguments(parser)
    path = name if Path(name).is_file() else str(CONFIGS / f'{name}.py')
    return load_config(
        parser.parse_args(
            [path, '--launcher', launcher, *(['--cfg-options', *options] if options else [])]
        )
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
        ('modle.backbone.drop_path_rate=0.3', "unknown key 'modle'; did you mean model"),
        ('train_cgf.max_iters=3', 'did you mean train_cfg?'),
        ('default_hooks.chekpoint.interval=3', 'did you mean default_hooks.checkpoint?'),
        ('train_dataloader.bacth_size=3', 'did you mean train_dataloader.batch_size?'),
        ('colour=blue', "unknown key 'colour'; nothing reads it"),
        # below parts with a type
        ('model.test_cfg.rcnn.scroe_thr=0.9', 'did you mean model.test_cfg.rcnn.score_thr?'),
        ('model.roi_hed.type=X', 'did you mean model.roi_head?'),
        (
            'optim_wrapper.paramwise_cfg.norm_decay_mul=0',
            'did you mean optim_wrapper.paramwise_cfg.norm_decay_mult?',
        ),
        ('optim_wrapper.optimizer.weight_dcay=0', 'optim_wrapper.optimizer.weight_decay'),
        ('optim_wrapper.acumulative_counts=2', 'optim_wrapper.accumulative_counts'),
        ('train_dataloader.dataset.filter_cfg.min_szie=200', 'filter_cfg.min_size'),
        ('train_dataloader.dataset.indcies=20', 'train_dataloader.dataset.indices'),
        ('train_dataloader.sampler.shufle=0', 'train_dataloader.sampler.shuffle'),
        ('train_dataloader.dataset.pipeline.2.keep_ration=0', 'pipeline.2.keep_ratio'),
        ('model.backbone.drop_path_rat=0.3', 'did you mean model.backbone.drop_path_rate?'),
        ('default_hooks.checkpoint.max_keep_ckpt=1', 'default_hooks.checkpoint.max_keep_ckpts'),
        ('param_scheduler.1.eta_mim=0', 'param_scheduler.1.eta_min'),
        ('train_cfg.max_iter=3', 'did you mean train_cfg.max_iters?'),
        ('val_evaluator.clas_wise=True', 'val_evaluator.classwise'),
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
        'param_scheduler.1.convert_to_iter_based=True',
        'default_hooks.checkpoint.priority=LOW',
        'default_hooks.checkpoint.save_best=auto',
        'optim_wrapper.paramwise_cfg.custom_keys.norm.decay_mult=0',
        'optim_wrapper.constructor=LayerDecayOptimWrapperConstructor',
        'optim_wrapper.loss_scale=512.0',
        'model.test_cfg.rpn.nms_post=8',
        'model.backbone.init_cfg=None',
        'model.init_cfg.type=Pretrained',
        'train_dataloader.dataset.indices=4',
        'train_dataloader.dataset.filter_cfg.min_size=8',
        'train_cfg.dynamic_intervals="[(1, 2)]"',
        'val_evaluator.classwise=True',
        'val_evaluator.outfile_prefix=a/b',
        'find_unused_parameters=True',
        'work_dir=here',
        'load_from=a.pth',
        'custom_hooks=[]',
    ],
)
def test_options_that_something_reads_are_not_told(option, capsys):
    config('focal_nano_maskrcnn', option)
    told = capsys.readouterr().out.splitlines()
    assert not [line for line in told if 'OneDL' not in line]  # mmseg tells at its import


ODD = """my data/lr=1e-4, wd=0; it's "one" (of, two"""


@pytest.mark.parametrize(
    ('option', 'value'),
    [
        # text where the config has text, a path of the runner, or an argument for text
        (f'train_dataloader.dataset.data_root={ODD}', ODD),
        ('train_dataloader.dataset.data_root=my data/digit scenes/', 'my data/digit scenes/'),
        (f'work_dir={ODD}', ODD),
        (f'load_from={ODD}', ODD),
        ('val_evaluator.outfile_prefix=runs/lr=1e-4,wd=0/p', 'runs/lr=1e-4,wd=0/p'),
        (f"""val_evaluator.outfile_prefix='{ODD}'""", ODD),
        ("""train_dataloader.dataset.data_root='a,b'""", 'a,b'),
        ('train_dataloader.dataset.data_root=/a/[b,c]', '/a/[b,c]'),
        # elsewhere, spaces stay and quotes keep commas
        ('colour=light blue', 'light blue'),
        ('colour="a,b"', 'a,b'),
        ('colour=', ''),
        ("colour=[traffic light,'a, b',cat]", ['traffic light', 'a, b', 'cat']),
        # as MMEngine's DictAction
        ('colour=1,0.5,x', [1, 0.5, 'x']),
        ('colour=a,', ['a']),
        ('colour=(a,)', ('a',)),
        ('colour=[]', []),
        ('colour=[(1, 2), [True, None], b]', [(1, 2), [True, None], 'b']),
        ('colour="[1,2]"', [1, 2]),
        ("""colour='a','b'""", ['a', 'b']),
        ('model.backbone.init_cfg=None', None),
        ('optim_wrapper.loss_scale=512', 512),
        ('val_evaluator.metric=bbox,segm', ['bbox', 'segm']),
    ],
)
def test_text_stays_text(option, value):
    key = option.split('=')[0]
    node = config('focal_nano_retinanet', option)
    for name in key.split('.'):
        node = node[name]
    assert node == value and type(node) is type(value)


@pytest.mark.parametrize(
    ('option', 'words'),
    [
        ('colour=[1,2', 'brackets do not match'),
        ('param_scheduler.7.end=3', 'param_scheduler.7.end=3: '),
        ('model.backbone.drop_path_rate.x=3', 'drop_path_rate.x=3: '),
    ],
)
def test_options_that_cannot_be_set_are_named(option, words):
    with pytest.raises(InputError, match=words):
        config('focal_nano_maskrcnn', option)


def test_words_that_are_no_options_are_named(capsys):
    with pytest.raises(SystemExit):
        config('focal_nano_maskrcnn', 'data_root', '=', 'x')
    assert "expected KEY=VALUE, found 'data_root'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ('line', 'words'),
    [
        ('custom_hook = []', 'did you mean custom_hooks?'),
        ('train_dataloder = dict(batch_size=4)', 'did you mean train_dataloader?'),  # the base's
        (
            'optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mul=0))',
            'did you mean optim_wrapper.paramwise_cfg.norm_decay_mult?',
        ),
        (
            'train_dataloader = dict(dataset=dict(filter_cfg=dict(min_szie=3)))',
            'did you mean train_dataloader.dataset.filter_cfg.min_size?',
        ),
    ],
)
def test_misspelled_keys_of_a_config_are_told(tmp_path, capsys, line, words):
    path = tmp_path / 'own.py'
    path.write_text(
        f"_base_ = '{CONFIGS}/focal_nano_cls.py'\n{line}\nwidth = 3\nmodels = ['model']\n"
    )
    config(str(path))
    told = capsys.readouterr().out
    assert told.count('WARNING') == 1 and words in told and str(path) in told


@pytest.mark.parametrize('package', ['mmdet', 'mmseg', 'mmpretrain'])
def test_the_hosts_keys_are_not_told(package, capsys):
    folder = Path(pytest.importorskip(package).__file__).parent / '.mim' / 'configs'
    names = {
        name
        for path in folder.rglob('*.py')
        for name in re.findall(r'^(\w+)\s*=(?!=)', path.read_text(encoding='utf-8'), re.M)
    }
    dicts = {name: {} for name in names | RUNNER_KEYS if name != 'models'}  # a list there
    warn_of_misspelled(Config(dicts))
    assert len(names) > 50 and not capsys.readouterr().out


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ("train_dataloader = 'x'", "train_dataloader='x'; expected a dict"),
        ("work_dir = 'own.py'", 'own.py is a file; expected a folder'),
    ],
)
def test_configs_that_cannot_be_read_are_named(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'own.py').write_text(f"default_scope = 'mmdet'\n{text}")
    with pytest.raises((InputError, MissingFileError), match=words):
        config('own.py')


@pytest.mark.parametrize('launcher', ['pytorch', 'slurm', 'mpi'])
def test_launchers_must_have_set_their_variables(monkeypatch, launcher):
    for name in ('RANK', 'WORLD_SIZE', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=f'--launcher {launcher}: .* not set; .*run'):
        config('focal_nano_cls', launcher=launcher)


def test_shipped_configs_have_known_keys(capsys):
    for task in ('htcpp', 'upernet', 'cls'):
        config(f'focal_nano_{task}')
    assert 'WARNING' not in capsys.readouterr().out


def test_misspelled_scopes_are_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"default_scope='mmdett'; did you mean mmdet\?"):
        config('focal_nano_maskrcnn', 'default_scope=mmdett')
    (tmp_path / 'mmdet3d').mkdir()  # a package of its own
    (tmp_path / 'mmdet3d' / '__init__.py').touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert config('focal_nano_cls', 'default_scope=mmdet3d').default_scope == 'mmdet3d'

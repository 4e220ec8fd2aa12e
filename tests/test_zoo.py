# SPDX-License-Identifier: Apache-2.0
"""Shipped configs are found by name, here and in the host libraries."""

import re
import subprocess
import sys

import mmpretrain
import pytest
from mmdet.apis import DetInferencer
from mmengine.hub import get_config
from mmseg.apis import MMSegInferencer

import mmfocal
import mmfocal.hub  # lets the hosts know the names
from mmfocal import cli
from mmfocal.zoo import find_config, list_configs
from tests.helpers.config_suite import CONFIGS, ROOT


def test_every_config_has_its_name():
    assert list_configs() == CONFIGS
    for name in CONFIGS:
        path = str(ROOT / f'{name}.py')
        assert mmfocal.config(name) == mmfocal.config(f'mmfocal::{name}.py') == path
        assert mmfocal.config(name.split('/')[-1]) == path
    assert mmfocal.config('_base_/schedules/coco_3x') == str(ROOT / '_base_/schedules/coco_3x.py')


def test_unknown_names_get_suggestions(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'focal_t_maskrcn_3x'; .*\bfocal_t_maskrcnn_3x"):
        mmfocal.config('focal_t_maskrcn_3x')
    mine = tmp_path / 'mine.py'
    mine.touch()
    assert find_config(mine) == str(mine)
    with pytest.raises(FileNotFoundError, match=r'absent\.py does not exist'):
        find_config(tmp_path / 'absent.py')


def test_hosts_find_the_names():
    assert {'focal_t_in1k', 'focal_b_convembed_in1k'} <= set(mmpretrain.list_models('focal'))
    assert mmpretrain.get_model('focal_t_d2222_in1k').backbone.depths == (2, 2, 2, 2)
    assert 'focal_t_maskrcnn_3x' in DetInferencer.list_models('mmfocal')
    detector = DetInferencer('focal_nano_retinanet', device='cpu').model
    assert isinstance(detector.backbone, mmfocal.FocalTransformer)
    segmentor = MMSegInferencer('focal_nano_upernet', device='cpu').model
    assert isinstance(segmentor.backbone, mmfocal.FocalTransformer)
    with pytest.raises(ValueError, match='is a config for mmdet; MMSegInferencer expects'):
        MMSegInferencer('focal_nano_retinanet', device='cpu')
    with pytest.raises(ValueError, match='Cannot find model: absent in mmdet'):
        DetInferencer('absent')
    cfg = get_config('mmfocal::classification/focal_t_in1k.py')
    assert cfg.model.backbone.type == 'FocalTransformer'


@pytest.mark.parametrize(
    'arguments', ['train absent.py', 'test absent.py a.pth', 'flops absent.py']
)
def test_missing_files_are_told_in_one_line(arguments):
    with pytest.raises(SystemExit, match=r'^error: config absent\.py does not exist; .+$'):
        cli.main(arguments.split())


def test_missing_checkpoints_are_told_in_one_line(repo_root):
    absent = r'error: checkpoint absent\.pth does not exist$'
    with pytest.raises(SystemExit, match=f'^{absent}'):
        cli.main(['test', 'quickstart/focal_nano_cls', 'absent.pth'])
    command = [sys.executable, 'tools/train.py', 'quickstart/focal_nano_cls', '--resume']
    done = subprocess.run(
        [*command, 'absent.pth'], cwd=repo_root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert re.search(absent, done.stderr.strip())


def test_existing_outputs_are_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('a.pth', 'a.pkl'):
        (tmp_path / name).touch()
    with pytest.raises(SystemExit, match=r'^error: a\.pkl exists; --overwrite replaces it$'):
        cli.main(['test', 'quickstart/focal_nano_cls', 'a.pth', '--out', 'a.pkl'])


def test_console_command(capsys):
    def shown(*arguments: str) -> str:
        cli.main(arguments)
        return capsys.readouterr().out

    overview = shown()
    for command in (*cli.COMMANDS, *cli.OTHERS):
        assert re.search(rf'^  mmfocal {command}', overview, re.MULTILINE), command
    assert 'FocalTransformer' in shown('flops', 'quickstart/focal_nano_cls')
    assert 'mmdet' in shown('env')
    completion = shown('--print-completion', 'bash')
    for option in ('--score-thr', '--auto-scale-lr', '--show-dir', '--val-images', '--convention'):
        assert option in completion, option
    for option in ('predict___out', 'new_config___out', 'new_config___train', 'predict_pos_1'):
        assert f'_shtab_mmfocal_{option}_COMPGEN=_shtab_compgen_files' in completion, option
    assert shown('--version').strip() == mmfocal.__version__


@pytest.mark.parametrize('command', [*cli.COMMANDS, *cli.OTHERS])
def test_every_command_has_help_with_an_example(command, capsys):
    try:
        cli.main([command, '--help'])
    except SystemExit as end:
        assert not end.code
    shown = capsys.readouterr().out
    assert shown.startswith(f'usage: mmfocal {command} ')
    assert re.search(rf'^examples:\n(  .+\n)*  mmfocal {command}\b', shown, re.MULTILINE)


@pytest.mark.parametrize(
    ('arguments', 'error'),
    [
        ('env absent', 'unrecognized arguments: absent'),
        ('tool', 'required: host, name'),
        ('tool absent browse_dataset', "invalid choice: 'absent'"),
    ],
)
def test_invalid_arguments_are_rejected(arguments, error, capsys):
    with pytest.raises(SystemExit, match='2'):
        cli.main(arguments.split())
    assert error in capsys.readouterr().err


def test_help_of_a_host_tool_is_its_own(capsys):
    with pytest.raises(SystemExit, match='0'):
        cli.main(['tool', 'mmdet', 'print_config', '--help'])
    assert 'usage: print_config.py' in capsys.readouterr().out

# SPDX-License-Identifier: Apache-2.0
"""The page about performance: up to date, true to its files, and its commands exist."""

import re
import shlex
import subprocess
from importlib import import_module
from pathlib import Path

import measure
import pytest
import report
import torch

PAGE = 'before\n<!-- table: {} -->\nold\n<!-- end -->\nafter\n'
BACKBONE_ROW = dict(model='focal_tiny', impl='sdpa', dtype='bf16', mode='infer', runtime='graph')
BACKBONE_ROW |= dict(height=224, width=320, batch=8, ms=12.345, ms_min=11.0, ms_max=13.0)
BACKBONE_ROW |= dict(images_per_s=648.0, ratio=1.234, memory_mib=256.0, memory_ratio=0.5)
BACKBONE_ROW |= dict(gmacs_per_image=4.9, utilization=0.4321, first_s=2.5, note='')


def test_page_is_up_to_date(capsys):
    assert report.main(['--check']) == 0, 'run benchmarks/report.py'
    assert 'up to date' in capsys.readouterr().out


def test_table(tmp_path):
    refused = dict.fromkeys(BACKBONE_ROW) | dict(model='focal_tiny', impl='triton')
    refused |= dict(runtime='eager', height=224, width=320, batch=8, note='it needs a GPU')
    measure.write_csv(tmp_path / 'gpu_new.csv', [BACKBONE_ROW, refused])
    page = tmp_path / 'page.md'
    page.write_text(PAGE.format('gpu_new') + PAGE.format('cpu_new'))
    assert report.main(['--page', str(page), '--results', str(tmp_path), '--check']) == 1
    assert report.main(['--page', str(page), '--results', str(tmp_path)]) == 0
    text = page.read_text()
    assert (
        '| focal_tiny sdpa CUDA graph | bf16 | infer | 224x320, 8 | 12.3 (11 to 13) | 648 | 1.23 '
        '| 256 | 0.5 | 4.9 | 43.2 % | 2.5 |\n'
    ) in text
    assert '| focal_tiny triton |  |  | 224x320, 8 | it needs a GPU |' in text
    assert f'torch {torch.__version__}' in text and 'old' not in text
    assert '<!-- table: cpu_new -->\n\nNot run.\n\n<!-- end -->' in text
    assert text.startswith('before\n') and text.endswith('after\n')
    assert report.main(['--page', str(page), '--results', str(tmp_path), '--check']) == 0


def test_errors(tmp_path):
    with pytest.raises(ValueError, match='no <!-- table'):
        report.render('text', tmp_path)
    (tmp_path / 'cpu_lost.csv').write_text('a\n1\n')
    with pytest.raises(ValueError, match='no table for cpu_lost'):
        report.render(PAGE.format('cpu_new'), tmp_path)
    with pytest.raises(ValueError, match='not from a known benchmark'):
        report.render(PAGE.format('cpu_lost'), tmp_path)


def dry_run(repo_root: Path, name: str, results: Path) -> list[list[str]]:
    """Command lines that a shell script would start."""
    done = subprocess.run(
        ['bash', str(repo_root / 'benchmarks' / name)],
        env=dict(PATH='/usr/bin:/bin', PYTHON='echo', RESULTS=str(results)),
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    return [shlex.split(line) for line in lines if line.startswith('benchmarks/')]


def check_command(command: list[str], repo_root: Path) -> None:
    script, *arguments = command
    module = import_module(Path(script).stem)
    if hasattr(module, 'parse_args'):
        module.parse_args(arguments)
    for argument in arguments:
        assert not argument.startswith('configs/') or (repo_root / argument).exists(), argument


@pytest.mark.parametrize('name', ['cpu.sh', 'gpu.sh'])
def test_shell_scripts(name, repo_root, tmp_path, monkeypatch, request):
    if name == 'gpu.sh':
        if 'triton' not in import_module('backbone').IMPLS:
            pytest.skip('there is no backend for GPUs')
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    commands = dry_run(repo_root, name, tmp_path)
    written = []
    for command in commands:
        check_command(command, repo_root)
        written.append(Path(command[command.index('--csv') + 1]).stem)
    prefix = name.removesuffix('.sh')
    marked = [name for _, name, _ in report.MARKED.findall(report.PAGE.read_text())]
    assert sorted(written) == sorted(
        name for name in marked if name.startswith(prefix) and not name.startswith('gpu_quick')
    )


def test_gpus_are_judged_by_fused_attention(repo_root, tmp_path):
    commands = dry_run(repo_root, 'gpu.sh', tmp_path)
    (command,) = (c for c in commands if str(tmp_path / 'gpu_backbone.csv') in c)
    assert command[command.index('--baselines') + 1] == 'timm_swin_tiny'


def test_shell_scripts_stop_early(repo_root, tmp_path):
    (tmp_path / 'cpu_old.csv').touch()
    with pytest.raises(subprocess.CalledProcessError) as caught:
        dry_run(repo_root, 'cpu.sh', tmp_path)
    assert 'set RESULTS to another folder, or pass --force' in caught.value.stderr
    assert caught.value.stdout == ''


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_gpu_script_needs_a_gpu(repo_root, tmp_path):
    import sys

    done = subprocess.run(
        ['bash', str(repo_root / 'benchmarks' / 'gpu.sh')],
        env=dict(PATH='/usr/bin:/bin', PYTHON=sys.executable, RESULTS=str(tmp_path)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert 'gpu.sh needs a GPU' in done.stderr and done.stdout == ''


def test_documented_commands(repo_root, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.chdir(tmp_path)  # where no file exists
    page = report.PAGE.read_text()
    lines = re.findall(r'^python (benchmarks/.*)$', page, re.MULTILINE)
    assert len(lines) >= 8
    for line in lines:
        check_command(shlex.split(line), repo_root)


def test_documented_variables_exist(repo_root):
    names = set(re.findall(r'MMFOCAL_\w+', report.PAGE.read_text()))
    sources = ''.join(path.read_text() for path in (repo_root / 'mmfocal').rglob('*.py'))
    assert 'MMFOCAL_ATTN_IMPL' in names
    assert [name for name in names if f"'{name}'" not in sources] == []

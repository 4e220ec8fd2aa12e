# SPDX-License-Identifier: Apache-2.0
"""The quick run for GPUs: goals, time limits, options, and a rehearsal of all parts on a CPU."""

import subprocess
import sys
from pathlib import Path

import measure
import pytest
import torch

pytest.importorskip('timm')
import quick


def backbone_row(runtime: str, mode: str, size: measure.Size, ratio: float | None) -> dict:
    row = dict(model='focal_tiny', impl='triton', mode=mode, runtime=runtime, **size._asdict())
    return row | dict(ratio=ratio, memory_ratio=0.9)


def test_goals(tmp_path: Path) -> None:
    small, large = quick.GPU.small, quick.GPU.large
    rows = [
        backbone_row('eager', 'train', small, 1.0),
        backbone_row('eager', 'train', large, 2.0),
        backbone_row('compile', 'infer', small, 1.25),
        backbone_row('graph', 'infer', small, 0.8),
        backbone_row('compile', 'infer', large, None),
        backbone_row('eager', 'infer', small, 0.1) | dict(model='swin', impl=''),
    ]
    quick.append_rows(tmp_path / quick.FILES['backbone'], rows[:3])
    quick.append_rows(tmp_path / quick.FILES['backbone'], rows[3:])
    attention = dict(impl='triton', direction='bwd', **small._asdict(), gflop_per_s=44_000.0)
    quick.append_rows(tmp_path / quick.FILES['attention'], [attention])
    cold = dict(impl='triton', mode='train', **small._asdict(), cold_s=21.5)
    quick.append_rows(tmp_path / quick.FILES['cold'], [cold])
    found = {(r['goal'], r['image']): r for r in quick.judge(quick.GPU, tmp_path)}
    assert len(found) == 13
    verdicts = {key: (row['measured'], row['verdict']) for key, row in found.items()}
    images = str(small), str(large)
    assert verdicts['eager training', images[0]] == (1.0, 'reached')
    assert verdicts['eager training', images[1]] == (0.5, 'missed')
    assert verdicts['compiled or graphed inference', images[0]] == (1.25, 'reached')
    assert verdicts['compiled or graphed inference', images[1]] == (None, 'not run')
    assert verdicts['eager inference', images[0]] == (None, 'not run')
    assert verdicts['peak training memory', images[0]] == (0.9, 'reached')
    assert verdicts['attention backward, TFLOP/s', images[0]] == (55.0, 'reached')
    assert verdicts['first training step, seconds', images[0]] == (21.5, 'missed')


def test_compiled_cases_are_compiled_first() -> None:
    """Each by its own process, as compilers are slower than the limits."""

    def compiled(parts: list[quick.Part]) -> list:
        cases = [part.cases(quick.GPU) for part in parts if part.runtime == 'compile']
        return sorted(str(case) for sizes in cases for size in sizes for case in size)

    assert len(compiled(quick.PARTS)) == 4
    assert compiled(quick.PARTS) == compiled(quick.WARM)
    assert all(len(part.cases(quick.GPU)[0]) == 1 for part in quick.WARM)


def test_parts_are_stopped_in_time() -> None:
    def start(code: str) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, '-c', code], start_new_session=True)

    sleeping = start('import time; time.sleep(60)')
    assert quick.finish(sleeping, 0.1) == 'stopped after 0 s'
    assert sleeping.returncode < 0
    assert quick.finish(start('raise SystemExit(3)'), 30) == 'exit status 3'
    assert quick.finish(start(''), 30) == ''


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_options(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / quick.FILES['goals']).write_text('precious')
    for options, message in {
        '': 'finds no CUDA device',
        '--rehearse': '--rehearse needs --results',
        f'--rehearse --results {tmp_path}': 'exists; give another folder',
    }.items():
        with pytest.raises(SystemExit):
            quick.parse_args(options.split())
        assert message in capsys.readouterr().err
    assert (tmp_path / quick.FILES['goals']).read_text() == 'precious'


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_rehearsal(repo_root: Path, tmp_path: Path) -> None:
    script = ['bash', str(repo_root / 'benchmarks' / 'gpu.sh'), '--quick', '--rehearse']
    done = subprocess.run(
        [*script, '--results', str(tmp_path), '--minutes', '60'], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    goals = measure.read_csv(tmp_path / quick.FILES['goals'])
    assert len(goals) == 13
    assert {row['verdict'] for row in goals} <= {'reached', 'missed'}

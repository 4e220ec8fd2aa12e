# SPDX-License-Identifier: Apache-2.0
"""Timing, memory, rates, and files that are not overwritten."""

import argparse
import time

import measure
import pytest
import torch


def test_alternate_takes_turns():
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in 'abc'}
    times = measure.alternate(steps, 'cpu', rounds=4, least=0)
    assert [len(rounds) for rounds in times.values()] == [4, 4, 4]
    assert ''.join(calls) == 'abc' + 'abc' + 'bca' + 'cab' + 'abc'  # warm-up, then four rounds


def test_short_steps_are_repeated():
    calls = []
    times = measure.alternate({'a': lambda: calls.append(time.sleep(0.01))}, 'cpu', 1, least=0.05)
    assert 3 <= len(calls) <= 6  # 1 to warm up and at most 5 of at least 0.01 s
    assert 0.01 <= times['a'][0] < 0.05


def test_ratio_compares_times_of_the_same_round():
    # the machine became ten times slower; the candidate always takes twice as long
    assert measure.ratio_of([2, 20, 20], [1, 10, 10]) == 2
    columns = measure.time_columns([0.002, 0.02, 0.004], [0.001, 0.01, 0.002])
    assert columns == dict(ms=4, ms_min=2, ms_max=20, ratio=2)
    assert set(measure.time_columns(None, None).values()) == {None}


def test_rounds_of_the_baseline_must_agree():
    noisy, steady = ({'swin': [1.0, last], 'focal': [1.0, 3.0]} for last in (1.2, 1.05))
    runs = [noisy, steady, noisy]
    assert measure.steadily(lambda: runs.pop(0), ['swin'], 0.1) == (steady, '')
    runs = [noisy] * measure.TRIES
    times, why = measure.steadily(lambda: runs.pop(0), ['swin'], 0.1)
    assert times == {} and why == 'rejected: rounds of the baseline spread by 20%, over 10%'
    assert measure.steadily(lambda: noisy, ['swin'], None) == (noisy, '')


def _explode(message: str):
    raise ValueError(message)


def test_refusals_are_told_from_errors():
    refusal = "attn_impl='triton' cannot run here: it needs a GPU; and more"
    step, seconds, note = measure.start(_explode, refusal, 'cpu')
    assert (step, seconds, note) == (None, None, 'it needs a GPU; and more')
    with pytest.raises(ValueError, match='qkv has 5 channels'):
        measure.start(_explode, 'qkv has 5 channels', 'cpu')
    step, seconds, note = measure.start(lambda case: lambda: time.sleep(0.01), '', 'cpu')
    assert callable(step) and seconds >= 0.01 and note == ''


def make_hungry_step(mebibytes: int):
    """Return a step that allocates half as much memory as this function.

    The function is not nested, so that another process can import it.
    """
    torch.ones(2 * mebibytes, measure.MIB // 4)
    return lambda: torch.ones(mebibytes, measure.MIB // 4).sum()


def test_memory_of_a_step_alone():
    ballast = torch.ones(300, measure.MIB // 4)  # of the parent, not of the candidate
    peak = measure.peak_memory(make_hungry_step, 100, None, 'cpu', 1) / measure.MIB
    assert 95 < peak < 140, f'100 MiB were allocated, {peak:.0f} measured'
    assert ballast.sum() > 0


def test_rates_of_the_machine():
    rate, again = (measure.matmul_rate('cpu', 'fp32') for _ in range(2))
    assert 1e8 < rate < 1e15 and rate == again
    assert 1e8 < measure.copy_rate('cpu') < 1e13


def test_environment(monkeypatch):
    monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.check=0')
    monkeypatch.setenv('MMFOCAL_ATTN_IMPL', 'sdpa')
    env = measure.environment()
    assert env['settings'] == 'GLIBC_TUNABLES=glibc.malloc.check=0 MMFOCAL_ATTN_IMPL=sdpa'
    assert env['torch'].startswith(torch.__version__)
    assert env['threads'] == torch.get_num_threads()
    assert {'cpu', 'gpu', 'triton', 'timm', 'mmpretrain', 'mmfocal', 'date'} <= set(env)


@pytest.mark.parametrize('text', ['224', '224x224', '224x0x1', '224x-4x1', 'axbxc', '1x2x3x4'])
def test_bad_sizes(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f'HEIGHTxWIDTHxBATCH.*{text}'):
        measure.parse_size(text)
    assert measure.parse_size('784x1344x2') == (784, 1344, 2)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ('--csv {file}', 'exists; give another name, or --force'),
        ('--rounds 0', '--rounds must be at least 1, got 0'),
        ('--max-spread 0.1 --rounds 5', 'needs at least 6 --rounds'),
        ('--threads -1', '--threads must be at least 1, got -1'),
        ('--device tpu', "invalid choice: 'tpu'"),
    ],
)
def test_bad_options(options, message, tmp_path, capsys):
    (tmp_path / 'old.csv').write_text('precious')
    parser = argparse.ArgumentParser()
    measure.add_common_arguments(parser)
    with pytest.raises(SystemExit):
        measure.parse(parser, options.format(file=tmp_path / 'old.csv').split())
    assert message in capsys.readouterr().err
    assert (tmp_path / 'old.csv').read_text() == 'precious'


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_no_gpu(capsys):
    parser = argparse.ArgumentParser()
    measure.add_common_arguments(parser)
    with pytest.raises(SystemExit):
        measure.parse(parser, ['--device', 'cuda'])
    assert 'finds no CUDA device' in capsys.readouterr().err


def test_csv_round_trip(tmp_path):
    path = tmp_path / 'new' / 'rows.csv'
    measure.write_csv(path, [dict(impl='a', ms=1 / 3, note=None), dict(impl='b,c', ms=None)])
    first, second = measure.read_csv(path)
    assert (first['impl'], first['ms'], first['note']) == ('a', '0.333333', '')
    assert (second['impl'], second['ms']) == ('b,c', '')
    assert first['torch'] == second['torch'] != ''
    path.write_text('impl,ms\n')
    with pytest.raises(ValueError, match='no rows'):
        measure.read_csv(path)


def test_short():
    assert [measure.short(x) for x in (1234.5, 99.96, 0.12345, None, 'a', 7)] == [
        '1234',
        '100',
        '0.123',
        '',
        'a',
        '7',
    ]

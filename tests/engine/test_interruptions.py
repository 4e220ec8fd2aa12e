# SPDX-License-Identifier: Apache-2.0
"""A training that is interrupted ends with the weights of one that is not, bit for bit."""

import hashlib
import os
import pickle
import resource
import shutil
import signal
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend
from mmengine.fileio.backends import backends
from mmengine.hooks import Hook
from mmengine.runner import CheckpointLoader

from mmfocal.engine import InputError, files, latest_checkpoint
from mmfocal.engine.files import AtomicBackend, local_copy, protect_files
from mmfocal.engine.randomness import seed_all
from mmfocal.engine.resume import resume
from tests.helpers.run_checkpoints import damage, training_checkpoint
from tests.helpers.toy_training import differing, train


class At(Hook):
    """Call something after an iteration."""

    priority = 'VERY_HIGH'

    def __init__(self, iteration: int, action) -> None:
        self.iteration, self.action = iteration, action

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration:
            self.action()


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt() -> None:
    raise KeyboardInterrupt


# ---- equal to an uninterrupted training --------------------------------------------------------


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two uninterrupted trainings: 8 iterations, and 3 epochs of 3 iterations."""
    root = tmp_path_factory.mktemp('whole')
    train(root / 'iters')
    train(root / 'epochs', 3, by_epoch=True)
    return root


@pytest.mark.parametrize('stop', [3, 4, 7])
@pytest.mark.parametrize('action', [terminate, interrupt])
def test_iterations_go_on(whole, tmp_path, stop, action):
    ended = SystemExit if action is terminate else KeyboardInterrupt
    with pytest.raises(ended):
        train(tmp_path, hooks=(At(stop, action),))
    found = latest_checkpoint(tmp_path)
    kept = stop if action is terminate else (stop - 1) // 2 * 2
    assert found == str(tmp_path / f'iter_{kept}.pth')
    assert (tmp_path / 'last_checkpoint').read_text() == found
    train(tmp_path, resume=found)
    assert not differing(whole / 'iters' / 'iter_8.pth', tmp_path / 'iter_8.pth')


@pytest.mark.parametrize('stop', [4, 5, 6])
def test_epochs_go_on_in_their_middle(whole, tmp_path, stop):
    with pytest.raises(SystemExit) as ended:
        train(tmp_path, 3, by_epoch=True, hooks=(At(stop, terminate),))
    assert ended.value.code == 143
    found = latest_checkpoint(tmp_path)
    assert found == str(tmp_path / f'iter_{stop}.pth')
    train(tmp_path, 3, by_epoch=True, resume=found)
    assert not differing(whole / 'epochs' / 'epoch_3.pth', tmp_path / 'epoch_3.pth')


def test_the_number_of_workers_changes_nothing(whole, tmp_path):
    with pytest.raises(SystemExit):
        train(tmp_path, hooks=(At(5, terminate),), workers=2)
    train(tmp_path, resume=tmp_path / 'iter_5.pth', workers=1)
    assert not differing(whole / 'iters' / 'iter_8.pth', tmp_path / 'iter_8.pth')


def test_places_draw_different_numbers():
    drawn = set()
    for place in [
        (0, 3, 0, 1),
        (0, 3, 1, 0),
        (0, 3, 1, 1),
        (1, 3, 0, 0, 1),
        (1, 3, 0, 1, 0),
        (1, 3, 1, 0, 0),
    ]:
        seed_all(*place)
        drawn.add(torch.rand(()).item())
    assert len(drawn) == 6


@pytest.mark.parametrize('by_epoch', [False, True])
def test_every_end_is_validated_once(tmp_path, by_epoch):
    name = 'epoch_{}.pth' if by_epoch else 'iter_{}.pth'
    for found in (None, tmp_path / name.format(2), tmp_path / name.format(4)):
        assert train(tmp_path, 4, by_epoch, found).metric.runs == 1


@pytest.mark.parametrize('by_epoch', [False, True])
def test_a_longer_schedule_takes_effect(tmp_path, by_epoch, capsys):
    name = 'epoch_{}.pth' if by_epoch else 'iter_{}.pth'
    train(tmp_path / 'long', 8, by_epoch, log_level='INFO')
    train(tmp_path / 'short', 4, by_epoch)
    last = tmp_path / 'short' / name.format(4)
    runner = train(tmp_path / 'short', 8, by_epoch, last, log_level='INFO')
    told = capsys.readouterr().out
    assert 'param_scheduler.0.end: ' in told and 'The schedule of the config is used' in told
    long, short = (
        torch.load(tmp_path / kind / name.format(6), weights_only=False)['param_schedulers']
        for kind in ('long', 'short')
    )
    assert short[0]['_last_value'] == pytest.approx(long[0]['_last_value'], rel=1e-6)
    assert runner.iter == runner.max_iters


def test_another_learning_rate_takes_effect(tmp_path):
    train(tmp_path, 4)
    wrapper = dict(optimizer=dict(type='AdamW', lr=0.01))
    schedule = [dict(type='ConstantLR', factor=1, by_epoch=False)]
    train(tmp_path, 6, resume=tmp_path / 'iter_4.pth', optim_wrapper=wrapper,
          param_scheduler=schedule)  # fmt: skip
    saved = torch.load(tmp_path / 'iter_6.pth', weights_only=False)
    assert saved['optimizer']['param_groups'][0]['lr'] == 0.01


# ---- which checkpoint --------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['truncated', 'empty', 'rotten', 'text'])
def test_the_newest_sound_checkpoint_wins(tmp_path, kind, capsys):
    first, second = (
        training_checkpoint(tmp_path / name, age)
        for age, name in enumerate(['iter_300.pth', 'iter_200.pth'])
    )
    training_checkpoint(tmp_path / 'best_mAP.pth', -5)
    (tmp_path / 'last_checkpoint').write_text(str(first))
    assert latest_checkpoint(tmp_path) == str(first)
    damage(first, kind)
    assert latest_checkpoint(tmp_path) == str(second)
    told = capsys.readouterr().out
    assert 'WARNING: ' in told and 'iter_300.pth' in told


@pytest.mark.parametrize(
    ('named', 'written', 'expected'),
    [
        # as in a copy or a restored backup, whose modification times follow no order
        ('iter_200.pth', ['iter_300.pth', 'iter_200.pth', 'iter_90.pth'], 'iter_200.pth'),
        ('/moved/away/iter_200.pth', ['iter_300.pth', 'iter_200.pth'], 'iter_200.pth'),
        ('/moved/away/iter_1.pth', ['iter_200.pth', 'iter_90.pth'], 'iter_200.pth'),
        ('', ['iter_200.pth', 'iter_90.pth'], 'iter_200.pth'),
        (None, ['iter_1000.pth', 'iter_200.pth', 'iter_90.pth'], 'iter_1000.pth'),
        (None, ['epoch_10.pth', 'epoch_9.pth'], 'epoch_10.pth'),
        # epochs of 50 iterations
        (None, ['iter_99.pth', 'epoch_2.pth', 'epoch_1.pth'], 'epoch_2.pth'),
        (None, ['iter_120.pth', 'epoch_2.pth', 'epoch_1.pth'], 'iter_120.pth'),
    ],
)
def test_progress_decides_not_the_time_of_the_file(tmp_path, named, written, expected):
    for age, name in enumerate(reversed(written)):
        number = int(''.join(filter(str.isdigit, name)))
        iterations = number * 50 if name.startswith('epoch') else number
        training_checkpoint(tmp_path / name, age, iterations)
    if named is not None:
        text = str(tmp_path / named) if named else ''  # an absolute one stays as it is
        (tmp_path / 'last_checkpoint').write_text(text)
    assert latest_checkpoint(tmp_path) == str(tmp_path / expected)
    assert latest_checkpoint(tmp_path, filename_tmpl='iter_{}.pth') == str(tmp_path / expected)


def test_damaged_checkpoints_by_epoch_are_named(tmp_path, capsys):
    training_checkpoint(tmp_path / 'iter_40.pth')
    training_checkpoint(tmp_path / 'epoch_1.pth', iterations=30)
    damage(training_checkpoint(tmp_path / 'epoch_2.pth', iterations=60), 'truncated')
    assert latest_checkpoint(tmp_path) == str(tmp_path / 'iter_40.pth')
    assert 'epoch_2.pth is incomplete' in capsys.readouterr().out


def test_a_model_alone_is_no_checkpoint_of_a_training(tmp_path, capsys):
    torch.save(dict(state_dict=dict(w=torch.zeros(3))), tmp_path / 'iter_1.pth')
    assert latest_checkpoint(tmp_path) is None
    assert "has no 'meta'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ('path', 'settings'),
    [
        ('out/run/iter_4.pth', dict(out_dir='out')),
        ('run/step-4.pth', dict(filename_tmpl='step-{}.pth')),
        ('run/step-0004.pth', dict(filename_tmpl='step-{:04d}.pth')),
        ('elsewhere/any.pth', {}),  # named by last_checkpoint
    ],
)
def test_all_places_of_checkpoints_are_found(tmp_path, monkeypatch, path, settings, capsys):
    monkeypatch.chdir(tmp_path)
    training_checkpoint(tmp_path / path)
    Path('run').mkdir(exist_ok=True)
    if not settings:
        Path('run', 'last_checkpoint').write_text(path)
    hook = dict(type='CheckpointHook', **settings)
    cfg = Config(dict(work_dir='run', default_hooks=dict(checkpoint=hook)))
    resume(cfg, 'auto')
    assert cfg.resume and Path(cfg.load_from).samefile(path)
    assert cfg.randomness.seed == 7
    assert f'resuming from {cfg.load_from}' in capsys.readouterr().out


def test_nothing_to_go_on_from_is_told(tmp_path, capsys):
    cfg = Config(dict(work_dir=str(tmp_path / 'absent')))
    resume(cfg, 'auto')
    assert not cfg.resume and cfg.load_from is None
    assert (
        f'no checkpoint in {tmp_path}/absent; training starts at iteration 0'
        in capsys.readouterr().out
    )


def test_a_broken_checkpoint_that_is_named_is_refused(tmp_path):
    damage(training_checkpoint(tmp_path / 'iter_4.pth'), 'truncated')
    with pytest.raises(InputError, match=r'--resume .*iter_4\.pth is incomplete'):
        resume(Config(dict(work_dir=str(tmp_path))), str(tmp_path / 'iter_4.pth'))


# ---- checkpoints of other models ---------------------------------------------------------------


def changed_state(path: Path, change) -> Path:
    content = torch.load(path, weights_only=False)
    change(content['state_dict'])
    torch.save(content, path)
    return path


@pytest.mark.parametrize('ema', [True, False])
@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (
            lambda state: state.update({'last.weight': torch.zeros(3, 8)}),
            r'of another shape: last\.weight \(3, 8\) instead of \(1, 8\)',
        ),
        (
            lambda state: state.pop('first.bias'),
            r'expected but not in the file: first\.bias \(8,\)',
        ),
        (
            lambda state: state.update({'more.weight': torch.zeros(2)}),
            r'in the file but not in the model: more\.weight \(2,\)',
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_not_resumed(tmp_path, change, words, ema):
    hooks = {} if ema else dict(custom_hooks=[])
    train(tmp_path, 2, **hooks)
    path = changed_state(tmp_path / 'iter_2.pth', change)
    words = rf'--resume .*iter_2\.pth is of another model\n  {words}'
    with pytest.raises(InputError, match=words):
        train(tmp_path, 4, resume=path, **hooks)


def test_buffers_that_are_recomputed_may_differ(tmp_path):
    train(tmp_path, 2)
    derived = dict.fromkeys(['norm.num_batches_tracked', 'relative_position_index'], torch.ones(2))
    path = changed_state(tmp_path / 'iter_2.pth', lambda state: state.update(derived))
    train(tmp_path, 4, resume=path)


def test_a_training_starts_from_what_fits(tmp_path):
    train(tmp_path, 2)
    source = tmp_path / 'iter_2.pth'
    changed_state(source, lambda state: state.update({'last.weight': torch.zeros(3, 8)}))
    train(tmp_path / 'new', 2, load_from=str(source))
    changed_state(source, lambda state: state.update({
        f'other.{key}': state.pop(key) for key in list(state)}))  # fmt: skip
    words = r'load_from=.*iter_2\.pth: none of its 4 parameters fits the model; found other\.first'
    with pytest.raises(InputError, match=words):
        train(tmp_path / 'new', 2, load_from=str(source))


@pytest.mark.parametrize('resumes', [False, True])
@pytest.mark.parametrize(
    ('value', 'words'),
    [
        (torch.full((8,), float('nan')), 'holds NaN or infinity'),
        (torch.zeros(8, dtype=torch.int64), r'is torch\.int64; expected floating-point'),
    ],
)
def test_a_training_starts_from_finite_numbers(tmp_path, value, words, resumes):
    train(tmp_path, 2)
    path = tmp_path / 'iter_2.pth'
    changed_state(
        path, lambda state: state.update({'first.bias': value[: len(state['first.bias'])]})
    )
    settings = dict(resume=path) if resumes else dict(load_from=str(path))
    with pytest.raises(InputError, match=rf'iter_2\.pth: first\.bias {words}'):
        train(tmp_path / 'new', 4, **settings)


# ---- writing -----------------------------------------------------------------------------------


def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    """The limit on the size of files stands in for the end of the disk."""
    path = tmp_path / 'iter_2.pth'
    path.write_bytes(b'old')
    monkeypatch.setattr(signal, 'SIGXFSZ', signal.SIGXFSZ)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r'existing file is unchanged.*iter_2\.pth'):
            AtomicBackend().put(bytes(5000), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b'old' and len(list(tmp_path.iterdir())) == 1


def test_the_only_checkpoint_is_deleted_after_the_next_is_written(tmp_path):
    class Look(Hook):
        def before_save_checkpoint(self, runner, checkpoint):
            seen.append(sorted(path.name for path in tmp_path.glob('iter_*.pth')))

    seen = []
    (tmp_path / '.iter_1.pth.123.tmp').touch()  # of a run that was killed
    train(tmp_path, 6, hooks=(Look(),), checkpoint=dict(max_keep_ckpts=1))
    assert seen == [[], ['iter_2.pth'], ['iter_4.pth']]
    assert [path.name for path in tmp_path.glob('*.pth*')] == ['iter_6.pth']
    assert not list(tmp_path.glob('.*.tmp'))


# ---- reading -----------------------------------------------------------------------------------


class Evil:
    def __reduce__(self):
        return (os.mkdir, (str(EVIDENCE),))


EVIDENCE = Path('evidence')


@pytest.fixture
def _protected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Undo what ``protect_files`` changes."""
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    monkeypatch.setattr(files.mmengine_checkpoint, 'load_url', files.mmengine_checkpoint.load_url)
    monkeypatch.setattr(tarfile.TarFile, 'extraction_filter', None, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures('_protected')
@pytest.mark.parametrize('resumes', [False, True])
def test_code_in_checkpoints_does_not_run(tmp_path, resumes):
    train(tmp_path / 'run', 2)
    path = tmp_path / 'run' / 'iter_2.pth'
    content = torch.load(path, weights_only=False)
    torch.save({**content, 'extra': Evil()}, path)
    protect_files()
    settings = dict(resume=path) if resumes else dict(load_from=str(path))
    with pytest.raises(ValueError, match=r'iter_2\.pth holds objects besides tensors'):
        train(tmp_path / 'other', 4, **settings)
    assert not EVIDENCE.exists()
    protect_files(allow_pickle=True)
    train(tmp_path / 'other', 4, **settings)
    assert EVIDENCE.exists()


@pytest.mark.usefixtures('_protected')
def test_a_config_in_a_checkpoint_is_not_executed(tmp_path):
    train(tmp_path / 'run', 2)
    path = tmp_path / 'run' / 'iter_2.pth'
    content = torch.load(path, weights_only=False)
    content['meta']['config'] = f'import os\nos.mkdir({str(EVIDENCE)!r})'
    torch.save(content, path)
    protect_files()
    train(tmp_path / 'run', 4, resume=path)
    assert not EVIDENCE.exists()


class Storage(LocalBackend):
    """Object storage in a folder, in place of the client that is not installed."""

    def _local(self, path: str) -> str:
        return path.split('://')[1]

    @contextmanager
    def get_local_path(self, path: str) -> Iterator[str]:
        yield self._local(path)

    def get(self, path: str) -> bytes:
        return Path(self._local(path)).read_bytes()


ADDRESSES = {
    '': 'evil.pth',
    'http://': 'http://localhost/evil-{0}.pth',
    'https://': 'https://localhost/evil-{0}.pth',
    r'(\S+\:)?s3://': 'cluster:s3://evil.pth',
    r'(\S+\:)?petrel://': 'petrel://evil.pth',
    'pavi://': 'pavi://evil',
    'open-mmlab://': 'open-mmlab://evil',
    'openmmlab://': 'openmmlab://evil_here',
    'modelzoo://': 'modelzoo://evil',
    'torchvision://': 'torchvision://evil',
    'mmcls://': 'mmcls://evil',
}


@pytest.mark.usefixtures('_protected')
def test_code_in_checkpoints_does_not_run_by_any_scheme(tmp_path, monkeypatch):
    checkpoint = files.mmengine_checkpoint
    torch.save(dict(state_dict=dict(a=torch.ones(1)), extra=Evil()), 'evil.pth')
    digest = hashlib.sha256(Path('evil.pth').read_bytes()).hexdigest()[:8]

    def serve(url: str, target: str, digits: str, progress: bool = True) -> None:
        assert url == f'https://localhost/evil-{digest}.pth'.replace('https', url.split(':')[0])
        shutil.copy('evil.pth', target)

    monkeypatch.setattr(torch.hub, 'download_url_to_file', serve)
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path))
    models = dict(evil=f'https://localhost/evil-{digest}.pth', evil_here='evil.pth')
    for name in ('get_torchvision_models', 'get_external_models', 'get_mmcls_models'):
        monkeypatch.setattr(checkpoint, name, lambda: models)
    monkeypatch.setitem(backends, 'petrel', Storage)
    protect_files()
    assert CheckpointLoader._schemes.keys() == ADDRESSES.keys()
    for prefix, address in ADDRESSES.items():
        address = address.format(digest)
        words = (
            'pavi://.* is not supported' if 'pavi' in prefix else 'holds objects besides tensors'
        )
        with pytest.raises(ValueError, match=words):
            CheckpointLoader.load_checkpoint(address)
        assert not EVIDENCE.exists(), address
    protect_files(allow_pickle=True)
    for address in ('s3://evil.pth', 'openmmlab://evil_here', 'mmcls://evil'):
        CheckpointLoader.load_checkpoint(address)
        EVIDENCE.rmdir()
    with pytest.raises(InputError, match='open-mmlab://none: unknown model of MMEngine'):
        CheckpointLoader.load_checkpoint('open-mmlab://none')


@pytest.mark.usefixtures('_protected')
@pytest.mark.parametrize('name', ['../evil', '{0}/evil', 'link/evil'])
def test_archives_do_not_write_outside(tmp_path, monkeypatch, name):
    """As mmpretrain extracts its downloads of CIFAR."""
    from mmpretrain.datasets.utils import extract_archive

    name = name.format(tmp_path / 'outside')
    for folder in ('outside', 'inside'):
        (tmp_path / folder).mkdir()
    with tarfile.open(tmp_path / 'a.tar', 'w') as archive:
        link = tarfile.TarInfo('link')
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / 'outside')
        if name.startswith('link'):
            archive.addfile(link)
        archive.addfile(tarfile.TarInfo(name))
    protect_files()
    with suppress(tarfile.TarError):  # the slash of an absolute name is removed
        extract_archive(str(tmp_path / 'a.tar'), str(tmp_path / 'inside'))
    assert not (tmp_path / 'evil').exists() and not (tmp_path / 'outside' / 'evil').exists()


def test_pickled_evil_is_evil(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Evil()))
    assert EVIDENCE.exists()


def test_downloads_need_a_checksum(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    content = b'weights'
    digest = hashlib.sha256(content).hexdigest()
    for name in (f'model-{digest[:8]}.pth', 'plain.pth', 'model-01234567.pth'):
        (tmp_path / name).write_bytes(content)
    address = tmp_path.as_uri()
    assert Path(local_copy(f'{address}/model-{digest[:8]}.pth')).read_bytes() == content
    assert Path(local_copy(f'{address}/plain.pth#sha256={digest}')).read_bytes() == content
    shutil.rmtree(tmp_path / 'hub')
    with pytest.raises(InputError, match='downloads need a checksum'):
        local_copy(f'{address}/plain.pth')
    assert Path(local_copy(f'{address}/plain.pth#unverified')).read_bytes() == content
    shutil.rmtree(tmp_path / 'hub')
    with pytest.raises(InputError, match='invalid hash value'):
        local_copy(f'{address}/model-01234567.pth')
    assert not list((tmp_path / 'hub').rglob('*.pth'))


# ---- losses that are not finite ----------------------------------------------------------------


class Break(Hook):
    """Make a tensor not finite before an iteration."""

    def __init__(self, what: str) -> None:
        self.what = what

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter != 2:
            return
        if self.what == 'parameter':
            runner.model.last.bias.data.fill_(float('nan'))
        elif self.what == 'output':
            runner.model.first.weight.data.fill_(1e38)
        else:
            data_batch['inputs'].fill_(float('inf'))


@pytest.mark.parametrize(
    ('what', 'words'),
    [
        ('parameter', r'parameter last\.bias, after an earlier step'),
        ('output', r'output of (first|last) \(Linear\)'),
        ('input', 'input'),
    ],
)
def test_a_loss_that_is_not_finite_stops_with_its_source(tmp_path, what, words):
    with pytest.raises(FloatingPointError, match=f'iteration 3: the loss is .*: {words}'):
        train(tmp_path, hooks=(Break(what),))
    assert latest_checkpoint(tmp_path) == str(tmp_path / 'iter_2.pth')


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    class Spoil(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter == 3:
                runner.model.first.bias.data.fill_(float('nan'))

    with pytest.raises(FloatingPointError, match=r'iteration 4: first\.bias is not finite'):
        train(tmp_path, hooks=(Spoil(),))
    assert latest_checkpoint(tmp_path) == str(tmp_path / 'iter_2.pth')

# SPDX-License-Identifier: Apache-2.0
"""Converting released files there and back, and publishing checkpoints."""

import hashlib
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from safetensors import safe_open

from mmfocal.models.checkpoint_files import read_checkpoint
from tests.helpers.golden import GOLDEN_DIR, load_golden

TOOLS = Path(__file__).resolve().parents[2] / 'tools'


class Done(NamedTuple):
    """Result of a tool: its output, and the error that it exited with, if any."""

    stdout: str
    error: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Done]:
    """Run a tool in this process: starting another would take longer than the work."""

    def run_tool(tool: str, *arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, 'argv', [tool, *map(str, arguments)])
        error = ''
        try:
            runpy.run_path(str(TOOLS / tool), run_name='__main__')
        except SystemExit as end:
            error = str(end.code)
        return Done(capsys.readouterr().out, error)

    return run_tool


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_released_files_survive_the_round_trip(run, tmp_path, suffix):
    released = load_golden(GOLDEN_DIR / 'cls224.pt')['state_dict']
    buffers = {'layers.0.blocks.0.attn.relative_position_index': torch.zeros(49, 49)}
    torch.save({'model': released | buffers, 'epoch': 3}, tmp_path / 'released.pth')
    ours, back = tmp_path / f'ours.{suffix}', tmp_path / f'back.{suffix}'
    done = run('convert/upstream_to_mmfocal.py', tmp_path / 'released.pth', ours)
    assert f'wrote {ours}: {len(released)} tensors; left out 1 ' in done.stdout, done.error
    content = read_checkpoint(str(ours))
    state = content.get('state_dict', content)
    assert torch.equal(state['backbone.norm3.weight'], released['norm.weight'])
    assert torch.equal(state['head.fc.bias'], released['head.bias'])
    done = run('convert/mmfocal_to_upstream.py', ours, back)
    assert not done.error
    content = read_checkpoint(str(back))
    found = content.get('model', content)
    assert found.keys() == released.keys()
    assert suffix == 'safetensors' or list(found) == list(released)  # safetensors sorts
    for key, value in released.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value), key


def test_other_files_are_refused(run, tmp_path):
    torch.save({'state_dict': {'backbone.norm0.weight': torch.ones(2)}}, tmp_path / 'other.pth')
    for tool, message in dict(
        upstream_to_mmfocal='is not a released classifier',
        mmfocal_to_upstream=r'expected a classifier with a FocalTransformer',
    ).items():
        done = run(f'convert/{tool}.py', tmp_path / 'other.pth', tmp_path / 'new.pth')
        assert message in done.error
        assert f'{tmp_path}/other.pth' in done.error
    assert [path.name for path in tmp_path.iterdir()] == ['other.pth']


@pytest.mark.parametrize('tool', ['upstream_to_mmfocal', 'mmfocal_to_upstream'])
def test_converters_keep_existing_files(run, tmp_path, tool):
    released = load_golden(GOLDEN_DIR / 'cls224.pt')['state_dict']
    source, mine = tmp_path / 'source.pth', tmp_path / 'mine.pth'
    torch.save({'model': released}, source)
    if tool == 'mmfocal_to_upstream':
        run('convert/upstream_to_mmfocal.py', source, tmp_path / 'ours.pth')
        source = tmp_path / 'ours.pth'
    mine.write_text('mine')
    before = source.read_bytes()
    done = run(f'convert/{tool}.py', source, mine)
    assert done.error == f'error: {mine} exists; --overwrite replaces it'
    assert mine.read_text() == 'mine'
    for extra in ((), ('--overwrite',)):
        done = run(
            f'convert/{tool}.py', source, tmp_path / '..' / tmp_path.name / source.name, *extra
        )
        assert f'is the input {source}; choose another output' in done.error
    assert source.read_bytes() == before
    assert not run(f'convert/{tool}.py', source, mine, '--overwrite').error
    assert len(read_checkpoint(str(mine))) > 0
    assert not list(tmp_path.glob('.*'))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Checkpoint of a run of MMEngine's: weights, optimizer and log buffers."""
    cfg = Config(
        dict(
            model=dict(type='ToyModel'),
            work_dir=str(tmp_path / 'run'),
            train_dataloader=dict(
                dataset=dict(type='ToyDataset'),
                sampler=dict(type='DefaultSampler', shuffle=False),
                batch_size=2,
            ),
            optim_wrapper=dict(optimizer=dict(type='Adam', lr=0.1)),
            train_cfg=dict(by_epoch=True, max_epochs=1),
            default_scope='mmengine',
        )
    )
    from mmengine.model import BaseModel
    from mmengine.registry import DATASETS, MODELS

    class ToyModel(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 400)

        def forward(self, inputs, mode='loss'):
            return dict(loss=self.linear(torch.stack(list(inputs))).square().mean())

    class ToyDataset(torch.utils.data.Dataset):
        METAINFO = metainfo = dict(classes=('zero', 'one'))

        def __len__(self) -> int:
            return 4

        def __getitem__(self, index):
            return dict(inputs=torch.ones(4))

    MODELS.register_module(module=ToyModel, force=True)
    DATASETS.register_module(module=ToyDataset, force=True)
    Runner.from_cfg(cfg).train()
    return tmp_path / 'run/epoch_1.pth'


def test_published_files_hold_weights_and_classes_only(run, checkpoint, tmp_path):
    done = run('analysis/publish_model.py', checkpoint, tmp_path / 'out/model.pth')
    assert not done.error
    (path,) = (tmp_path / 'out').iterdir()
    assert path.name == f'model-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth'
    content = torch.load(path, weights_only=True)  # nothing in it needs more
    assert content.keys() == {'meta', 'state_dict'}
    assert content['meta']['dataset_meta']['classes'] == ('zero', 'one')
    trained = read_checkpoint(str(checkpoint))
    assert 'optimizer' in trained and 'message_hub' in trained
    weight = trained['state_dict']['linear.weight']
    assert torch.equal(content['state_dict']['linear.weight'], weight)
    assert path.stat().st_size < checkpoint.stat().st_size

    done = run('analysis/publish_model.py', checkpoint, tmp_path / 'st/model', '--safetensors')
    (path,) = (tmp_path / 'st').iterdir()
    assert path.suffix == '.safetensors' and f'wrote {path}' in done.stdout
    with safe_open(path, 'pt') as file:
        assert torch.equal(file.get_tensor('linear.weight'), weight)
        assert file.metadata()['classes'] == '["zero", "one"]'


def test_publishing_keeps_existing_files(run, checkpoint, tmp_path):
    before = checkpoint.read_bytes()
    for option in ((), ('--overwrite',)):  # the training's checkpoint stays
        done = run('analysis/publish_model.py', checkpoint, checkpoint, *option)
        assert not done.error
        assert checkpoint.read_bytes() == before
    mine = tmp_path / 'mine.pth'
    mine.write_text('mine')
    assert not run('analysis/publish_model.py', checkpoint, mine).error
    assert mine.read_text() == 'mine'
    (published,) = tmp_path.glob('mine-*.pth')
    published.write_text('changed')
    done = run('analysis/publish_model.py', checkpoint, mine)
    assert done.error == f'error: {published} exists; --overwrite replaces it'
    assert published.read_text() == 'changed'
    done = run('analysis/publish_model.py', checkpoint, mine, '--overwrite')
    assert f'wrote {published}' in done.stdout and published.read_text('latin-1') != 'changed'
    done = run('analysis/publish_model.py', published, mine, '--overwrite')
    assert f'is the input {published}' in done.error
    assert not list(tmp_path.rglob('.*'))


def test_publishing_says_what_is_wrong(run, tmp_path, checkpoint):
    for arguments, message in (
        ((tmp_path / 'none.pth', tmp_path / 'a.pth'), 'none.pth does not exist'),
        ((checkpoint, tmp_path / 'a.bin'), 'expected a name that ends with .pth or .safetensors'),
        ((checkpoint, tmp_path / 'a.pth', '--save-keys', 'weights'), "lacks ['weights']"),
    ):
        done = run('analysis/publish_model.py', *arguments)
        assert message in done.error

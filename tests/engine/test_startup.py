# SPDX-License-Identifier: Apache-2.0
"""Errors of the hosts before the first iteration name the part; others keep their traceback."""

import copy
import random
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset, ConcatDataset
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import HOOKS, DefaultScope
from mmengine.runner import Runner
from torch import nn

from mmfocal.engine import InputError
from mmfocal.engine.config_shape import check_complete
from mmfocal.engine.startup import LoadFirstSamples, explained

CONTENT = '{"metainfo": {}, "data_list": [{"img_path": "a.png"}]}'
TRAIN = ('train_dataloader', 'train_cfg', 'optim_wrapper')


class Own(nn.Module):
    """A model that raises errors of its own in training."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def train_step(self, *_: Any, **__: Any) -> None:
        raise ValueError('in training')


def config(root: Path, **changes) -> Config:
    dataset = dict(
        type=BaseDataset, data_root=str(root), indices=1, pipeline=[], lazy_init=True,
        ann_file='a.json',
    )  # fmt: skip
    cfg = dict(
        work_dir=str(root),
        train_dataloader=dict(
            batch_size=1, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dataset
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        default_scope='mmengine',
        log_level='ERROR',
    )
    cfg = Config(cfg)
    cfg.merge_from_dict(changes)
    return cfg


def train(cfg: Config) -> None:
    with explained(cfg):
        Runner(Own(), cfg=cfg, experiment_name=cfg.work_dir, **cfg).train()


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'default_hooks.logger.type': 'LogerHook'},
         "default_hooks.logger.type='LogerHook' is not registered; did you mean LoggerHook?"),
        ({'default_hooks.logger.intervall': 3},
         r'default_hooks\.logger \(LoggerHook\) cannot be built: .*; the nearest .* is interval'),
        ({'train_dataloader.sampler.shufle': 3}, 'the nearest argument is shuffle'),
        ({'train_dataloader.dataset.pipeline': [dict(type='TestTimeAg')]},
         "train_dataloader.dataset.pipeline.0.type='TestTimeAg' is not reg"),
        ({'optim_wrapper.clip_grad': 3}, r'optim_wrapper \(OptimWrapper\) cannot be built: Asser'),
        ({'optim_wrapper.optimizer.lr': -1}, r'optim_wrapper\.optimizer \(SGD\) cannot be built'),
        ({'randomness': dict(sed=1)}, "unexpected keyword argument 'sed'"),
        ({'param_scheduler': dict(type='StepLR', step_size=0, gama=3)}, "unexpected .* 'gama'"),
    ],
)  # fmt: skip
def test_parts_that_cannot_be_built_are_named(tmp_path, changes, words):
    (tmp_path / 'a.json').write_text(CONTENT)
    with pytest.raises(InputError, match=words):
        train(config(tmp_path, **changes))


def test_parts_that_are_text_are_named():
    cfg = Config(dict(default_hooks=dict(logger='LoggerHook')))
    words = "default_hooks.logger='LoggerHook'; expected a dict with a type"
    with pytest.raises(InputError, match=words), explained(cfg):
        HOOKS.build(cfg.default_hooks.logger)


def test_errors_of_own_code_and_of_the_training_keep_their_traceback(tmp_path):
    @HOOKS.register_module(force=True)
    class OwnHook:
        def __init__(self) -> None:
            raise ValueError('in a hook')

    (tmp_path / 'a.json').write_text(CONTENT)
    try:
        with pytest.raises(ValueError, match='in a hook') as error:
            train(config(tmp_path, custom_hooks=[dict(type='OwnHook')]))
        assert not isinstance(error.value, InputError)
    finally:
        HOOKS.module_dict.pop('OwnHook')
    with pytest.raises(ValueError, match='in training') as error:
        train(config(tmp_path))
    assert not isinstance(error.value, InputError)


@pytest.mark.parametrize('name', ['model', *TRAIN])
def test_settings_that_belong_together_must_all_be_there(name):
    cfg = Config(dict(model={}, **{key: {} for key in TRAIN}))
    check_complete(cfg, 'train')
    check_complete(cfg, 'val')
    cfg[name] = None
    with pytest.raises(InputError, match=f'has no {name}; expected model, train_dataloader'):
        check_complete(cfg, 'train')
    with pytest.raises(InputError, match=r'has no val_cfg, val_evaluator; .* none of them for no'):
        check_complete(Config(dict(val_dataloader={})), 'val')


# ---- first samples -----------------------------------------------------------------------------


class Collect:
    """A transform that keeps images and draws random numbers."""

    def __init__(self) -> None:
        self.kept: list = []

    def __call__(self, results: dict) -> dict:
        self.kept.append(random.random() + np.random.rand() + torch.rand(1).item())
        return dict(results, inputs=self.kept[-1])


def dataset(root: Path, *steps: Any) -> BaseDataset:
    (root / 'a.json').write_text(CONTENT)
    with DefaultScope.overwrite_default_scope('mmengine'):
        return BaseDataset(ann_file=str(root / 'a.json'), pipeline=list(steps))


def load_first(split: str, data: Any, preprocessor: Any = None) -> None:
    loops = dict.fromkeys(('train_loop', 'val_loop'))
    loops[f'{split}_loop'] = SimpleNamespace(dataloader=SimpleNamespace(dataset=data))
    model = SimpleNamespace(data_preprocessor=preprocessor)
    LoadFirstSamples().before_train(SimpleNamespace(model=model, **loops))


@pytest.mark.parametrize('split', ['train', 'val'])
def test_pipelines_that_fail_at_their_first_image_are_named(tmp_path, split):
    mmcv = pytest.importorskip('mmcv.transforms')
    resize = mmcv.Resize(scale=(-5, 10))
    with pytest.raises(InputError, match=f'{split}_dataloader: Resize of the pipeline fails: '):
        load_first(split, dataset(tmp_path, lambda _: dict(img=np.zeros((9, 9, 3))), resize))
    with pytest.raises(ZeroDivisionError):  # own code
        load_first(split, dataset(tmp_path, lambda _: 1 / 0))
    with pytest.raises(AttributeError) as error:  # own code that calls another library
        load_first(split, dataset(tmp_path, lambda _: mmcv.Resize(scale=(1, 1))({'img': 3})))
    assert not isinstance(error.value, InputError)


def test_inputs_are_packed_for_preprocessors_of_the_hosts(tmp_path):
    models = pytest.importorskip('mmdet.models')
    unpacked = ConcatDataset([dataset(tmp_path, Collect(), lambda _: {})])
    with pytest.raises(InputError, match=r"val_dataloader: no step .* \['Collect', 'func"):
        load_first('val', unpacked, models.DetDataPreprocessor())
    load_first('val', unpacked, BaseDataPreprocessor())  # takes what it gets


def test_data_sets_with_a_way_of_their_own_are_left_out(tmp_path):
    class Own(BaseDataset):
        def __getitem__(self, index: int) -> dict:
            return dict(inputs=index)

    def fails(results: dict) -> None:
        raise AssertionError

    data = dataset(tmp_path, fails)
    data.__class__ = Own
    load_first('train', data)
    locked = dataset(tmp_path, fails)
    locked.pipeline.transforms.append(Lock())  # cannot be copied
    load_first('train', locked)
    wrappers = pytest.importorskip('mmdet.datasets')
    load_first('train', wrappers.MultiImageMixDataset(dataset(tmp_path, fails), []))


def test_loading_samples_changes_no_training(tmp_path):
    steps = [Collect(), copy.copy]
    data = dataset(tmp_path, *steps)
    state = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    load_first('train', data)
    load_first('val', ConcatDataset([data]))
    load_first('val', [1, 2])  # no pipeline
    assert not steps[0].kept and random.getstate() == state[0]
    assert (np.random.get_state()[1] == state[1]).all()
    assert torch.equal(torch.get_rng_state(), state[2])

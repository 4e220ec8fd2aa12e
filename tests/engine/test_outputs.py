# SPDX-License-Identifier: Apache-2.0
"""Every image gets its own output, and a test set without annotations gets no score."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmfocal.engine import InputError, outputs
from mmfocal.engine.evaluate import dump_metric, nothing_to_score, score_nothing
from mmfocal.engine.outputs import (
    DrawPredictions,
    SeparateLabelMaps,
    output_names,
    tell_replacement,
)
from mmfocal.errors import ExistingFileError


@pytest.mark.parametrize(
    ('paths', 'suffix', 'names'),
    [
        (['d/a.png', 'd/b.jpg'], None, ['a.png', 'b.jpg']),
        (['d/x/a.png', 'd/y/b.png'], None, ['a.png', 'b.png']),
        (['d/x/0.png', 'd/y/0.png'], None, ['x/0.png', 'y/0.png']),
        (['d/0.png', 'd/y/0.png'], None, ['0.png', 'y/0.png']),
        (['/d/x/0.png', '/d/y/0.png'], None, ['x/0.png', 'y/0.png']),
        (['d/a.jpg', 'd/a.png'], None, ['a.jpg', 'a.png']),
        (['d/a.jpg', 'd/a.png'], '.png', ['a.jpg.png', 'a.png.png']),
        (['d/x/0.jpg', 'd/y/0.jpg'], '.png', ['x/0.png', 'y/0.png']),
        (['d/A.png', 'd/x/a.png'], None, ['A.png', 'x/a.png']),  # file systems that ignore case
        (['d/a.gif', 'd/b'], None, ['a.gif.png', 'b.png']),
        (['d/a.png', 'd/a.png'], None, ['a.png']),
        (['s3://b/x/0.png', 's3://b/y/0.png'], None, ['x/0.png', 'y/0.png']),
        ([], None, []),
    ],
)
def test_names(paths, suffix, names):
    assert list(output_names(paths, suffix).values()) == names


def test_names_are_as_many_as_images_and_stay_below_the_folder():
    rng = np.random.default_rng(0)
    for _ in range(200):
        parts = rng.choice(['..', '.', 'a', 'B', 'b', 'a.b', '0.png', 'ü'], (20, 3))
        paths = {f'{"/" * int(rng.integers(2))}{"/".join(row)}.png' for row in parts}
        names = output_names(paths)
        files = {os.path.abspath(path) for path in paths}
        assert len(set(names.values())) == len(files)
        assert all('..' not in Path(name).parts and name[0] != '/' for name in names.values())


def folders(root: Path) -> list[str]:
    paths = [root / folder / '0.png' for folder in 'xyz']
    for path in paths:
        path.parent.mkdir(parents=True)
        Image.new('RGB', (40, 30)).save(path)
    return [str(path) for path in paths]


class Images:
    """A data set that knows its images; None is one without a file."""

    def __init__(self, paths: list[str | None]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def get_data_info(self, index: int) -> dict:
        path = self.paths[index]
        return dict(img_path=path) if path else dict(img=np.zeros((4, 4, 3), np.uint8))


def written(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*.*'))


def test_pictures_of_equal_names_do_not_replace_each_other(tmp_path):
    from mmpretrain.structures import DataSample
    from mmpretrain.visualization import UniversalVisualizer

    paths = folders(tmp_path)
    samples = [DataSample(metainfo=dict(img_path=path)).set_pred_label(0) for path in paths]
    loader = SimpleNamespace(dataset=Images(paths))
    visualizer = UniversalVisualizer(name='own')
    runner = SimpleNamespace(test_dataloader=loader, visualizer=visualizer)
    hook = DrawPredictions(str(tmp_path / 'out'), show=False, wait_time=0)
    hook.before_test(runner)
    hook.after_test_iter(runner, 0, {}, samples)
    assert written(tmp_path / 'out') == ['x/0.png', 'y/0.png', 'z/0.png']


@pytest.mark.parametrize('form', ['batch', 'list', 'views', 'lists of views'])
@pytest.mark.parametrize('channels', [1, 3])
def test_images_without_files_are_drawn_and_numbered(tmp_path, form, channels):
    from mmpretrain.structures import DataSample
    from mmpretrain.visualization import UniversalVisualizer

    samples = [DataSample(metainfo=dict(sample_idx=i)).set_pred_label(0) for i in range(3)]
    batch = torch.arange(1, 4).view(3, 1, 1, 1).expand(3, channels, 40, 40) * 60
    inputs = dict(batch=batch, list=list(batch), views=[batch, 0 * batch])
    inputs['lists of views'] = [list(view) for view in inputs['views']]
    runner = SimpleNamespace(
        test_dataloader=SimpleNamespace(dataset=Images([None] * 3)),
        visualizer=UniversalVisualizer(name='numbered'),
    )
    hook = DrawPredictions(str(tmp_path / 'out'), show=False, wait_time=0)
    hook.before_test(runner)
    hook.after_test_iter(runner, 0, dict(inputs=inputs[form]), samples)
    names = [f'{number:06d}.png' for number in range(3)]
    assert written(tmp_path / 'out') == names
    corners = [np.asarray(Image.open(tmp_path / 'out' / name))[-1, -1] for name in names]
    assert [corner.tolist() for corner in corners] == [[60] * 3, [120] * 3, [180] * 3]


def test_numbers_of_several_processes_differ(monkeypatch):
    monkeypatch.setattr(outputs, 'get_world_size', lambda: 2)
    found = []
    for rank in range(2):
        monkeypatch.setattr(outputs, 'get_rank', lambda rank=rank: rank)
        names = outputs.OutputNames(Images([None]), 'out', '.png')
        found += [names.next(None), names.next('/elsewhere/a.jpg'), names.next('s3://b/c')]
    assert found == [
        *('000000.png', '000002_a.png', '000004_c.png'),
        *('000001.png', '000003_a.png', '000005_c.png'),
    ]


def test_label_maps_of_equal_names_do_not_replace_each_other(tmp_path):
    from mmseg.evaluation import IoUMetric

    paths = folders(tmp_path)
    metric = IoUMetric(format_only=True, output_dir=str(tmp_path / 'out'))
    metric.dataset_meta = dict(classes=('a', 'b', 'c'))
    loader = SimpleNamespace(dataset=Images(paths))
    SeparateLabelMaps().before_test(
        SimpleNamespace(test_dataloader=loader, test_evaluator=SimpleNamespace(metrics=[metric]))
    )
    samples = [dict(img_path=path) for path in paths]
    # an image that the data set does not list, and one without a file
    Image.new('RGB', (40, 30)).save(tmp_path / 'unlisted.png')
    before = (tmp_path / 'unlisted.png').read_bytes()
    samples += [dict(img_path=str(tmp_path / 'unlisted.png')), {}]
    for label, sample in enumerate(samples):
        data = torch.full((1, 3, 4), label)
        metric.process({}, [dict(sample, pred_sem_seg=dict(data=data))])
    names = ['x/0.png', 'y/0.png', 'z/0.png', '000003_unlisted.png', '000004.png']
    assert written(tmp_path / 'out') == sorted(names)
    for label, name in enumerate(names):
        labels = np.asarray(Image.open(tmp_path / 'out' / name))
        assert labels.shape == (3, 4) and (labels == label).all()
    assert metric.output_dir == str(tmp_path / 'out')
    assert (tmp_path / 'unlisted.png').read_bytes() == before


@pytest.mark.parametrize('key', ['img_path', 'seg_map_path'])
@pytest.mark.parametrize('task', ['draw', 'label maps', 'validation'])
def test_data_is_not_an_output_folder(tmp_path, key, task):
    path, other = tmp_path / 'a' / '0.png', tmp_path / 'b' / '0.png'
    for each in (path, other):
        each.parent.mkdir()
        Image.new('RGB', (40, 30)).save(each)
    infos = {'img_path': str(other), 'seg_map_path': str(other), key: str(path)}
    dataset = Images([str(path)])
    dataset.get_data_info = lambda index: infos
    metric = SimpleNamespace(output_dir=str(path.parent))
    split = 'val' if task == 'validation' else 'test'
    settings = {
        f'{split}_dataloader': SimpleNamespace(dataset=dataset),
        f'{split}_evaluator': SimpleNamespace(metrics=[metric]),
    }
    hook = DrawPredictions(str(path.parent)) if task == 'draw' else SeparateLabelMaps()
    start = hook.before_train if task == 'validation' else hook.before_test
    with pytest.raises(ExistingFileError, match=r'a/0\.png is the input .*; choose another out'):
        start(SimpleNamespace(**settings, val_loop=True))


def test_replaced_files_are_told(tmp_path, capsys):
    cfg = Config({})
    tell_replacement(cfg, str(tmp_path))
    tell_replacement(cfg, None)
    assert not capsys.readouterr().out
    (tmp_path / 'a.pkl').touch()
    tell_replacement(cfg, str(tmp_path))
    tell_replacement(cfg, str(tmp_path / 'a.pkl'))
    told = capsys.readouterr().out
    assert f'{tmp_path} is not empty' in told and 'a.pkl exists and is replaced' in told


def unannotated(tmp_path: Path, scope: str) -> Config:
    """Return a test set of each library, without annotations for a score."""
    (tmp_path / 'info.json').write_text(json.dumps(dict(images=[dict(id=1)], categories=[])))
    datasets = dict(
        mmdet=dict(type='CocoDataset', ann_file='info.json', pipeline=[]),
        mmseg=dict(
            type='BaseSegDataset',
            data_prefix=dict(img_path='images', seg_map_path='absent'),
            pipeline=[dict(type='LoadAnnotations'), dict(type='PackSegInputs')],
        ),
        mmpretrain=dict(type='CustomDataset', with_label=False, pipeline=[]),
    )
    metrics = dict(
        mmdet=dict(type='CocoMetric', ann_file=str(tmp_path / 'info.json')),
        mmseg=[dict(type='IoUMetric')],
        mmpretrain=dict(type='Accuracy'),
    )
    dataset = dict(datasets[scope], data_root=str(tmp_path))
    return Config(
        dict(
            default_scope=scope,
            test_dataloader=dict(dataset=dataset),
            test_evaluator=metrics[scope],
        )
    )


@pytest.mark.parametrize(
    ('scope', 'words'),
    [
        ('mmdet', r'nothing to score: .*info\.json has no annotations'),
        ('mmseg', 'nothing to score: there are no label maps in .*absent'),
        ('mmpretrain', r'nothing to score: test_dataloader\.dataset has no labels'),
    ],
)
def test_nothing_to_score_is_told(tmp_path, scope, words, capsys):
    cfg = unannotated(tmp_path, scope)
    reason = nothing_to_score(cfg)
    with pytest.raises(InputError, match=words + r'\. To write predictions: --out'):
        score_nothing(cfg, reason, writes=False)
    score_nothing(cfg, reason, writes=True)
    assert cfg.test_evaluator == [] and 'Nothing to score' in capsys.readouterr().out
    assert all(step['type'] != 'LoadAnnotations' for step in cfg.test_dataloader.dataset.pipeline)


def test_files_for_a_test_server_need_no_score(tmp_path):
    cfg = unannotated(tmp_path, 'mmdet')
    cfg.test_evaluator.format_only = True
    assert nothing_to_score(cfg) is None


def test_predictions_go_into_pickle_files():
    with pytest.raises(ValueError, match=r'--out found\.json: expected a file ending in \.pkl'):
        dump_metric('mmdet', 'found.json')

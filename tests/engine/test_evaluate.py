# SPDX-License-Identifier: Apache-2.0
"""Changes that the options of ``tools/test.py`` make to a config."""

import shutil
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

from mmfocal.engine import InputError, check_inputs, read_config
from mmfocal.engine.evaluate import (
    draw_predictions,
    nothing_to_score,
    tell_written_by_metrics,
    use_tta,
    warn_of_base_names,
    write_submission,
)


@pytest.mark.parametrize(
    ('scope', 'message'),
    [
        ('mmdet', "needs 'tta_model', which the config does not have; .*type='MaskTTAModel'"),
        ('mmseg', "needs 'tta_model', which the config does not have$"),
    ],
)
def test_missing_test_time_augmentation_is_explained(scope, message):
    with pytest.raises(ValueError, match=message):
        use_tta(Config(dict(default_scope=scope, model=dict(type='MaskRCNN'))))


def test_classification_does_not_draw_several_views():
    hook = dict(type='VisualizationHook', enable=True)
    cfg = Config(dict(default_scope='mmpretrain', default_hooks=dict(visualization=hook)))
    with pytest.raises(ValueError, match='use --show-dir'):
        use_tta(cfg)


@pytest.mark.parametrize('task', ['maskrcnn', 'upernet', 'cls'])
def test_drawing_keeps_the_settings_of_the_config(task, repo_root, tmp_path):
    cfg = read_config(repo_root / 'configs' / 'quickstart' / f'focal_nano_{task}.py')
    hook = cfg.default_hooks.visualization
    hook.update(dict(maskrcnn=dict(score_thr=0.7), upernet={}, cls=dict(resize=64))[task])
    drawing = draw_predictions(cfg, show=False, show_dir=str(tmp_path), wait_time=0)
    own = dict(maskrcnn=dict(pred_score_thr=0.7), upernet={}, cls=dict(resize=64))[task]
    assert drawing.options == dict(show=False, wait_time=0, **own)
    assert drawing.folder == str(tmp_path)


@pytest.fixture
def photograph(tmp_path) -> str:
    """ADE20K's validation set with one image of 120 x 90 pixels; returns its root."""
    for folder, name, mode in (('images', 'one.jpg', 'RGB'), ('annotations', 'one.png', 'L')):
        path = tmp_path / folder / 'validation' / name
        path.parent.mkdir(parents=True)
        Image.new(mode, (120, 90)).save(path)
    return str(tmp_path)


@pytest.mark.parametrize(
    ('config', 'short'), [('focal_t_upernet_160k', 512), ('focal_l_upernet_640_160k', 640)]
)
def test_views_for_label_maps_are_ratios_of_the_test_scale(config, short, photograph, repo_root):
    """mmseg's own views are ratios of the stored image, which is much smaller here."""
    cfg = Config.fromfile(repo_root / 'configs' / 'segmentation' / f'{config}.py')
    cfg.test_dataloader.dataset.data_root = photograph

    def first_image():
        with DefaultScope.overwrite_default_scope('mmseg'):
            return DATASETS.build(cfg.test_dataloader.dataset)[0]['inputs']

    assert first_image().shape == (3, short, round(short * 4 / 3))
    use_tta(cfg)
    ratios = [ratio for ratio in (0.5, 0.75, 1, 1.25, 1.5, 1.75) for _ in ('plain', 'mirrored')]
    for view, ratio in zip(first_image(), ratios, strict=True):
        assert view.shape == (3, short * ratio, round(short * ratio * 4 / 3))


def test_ade20ks_test_set_needs_no_label_maps(photograph, repo_root):
    cfg = Config.fromfile(repo_root / 'configs/segmentation/focal_t_upernet_160k.py')
    shutil.rmtree(Path(photograph, 'annotations'))
    cfg.test_dataloader.dataset.data_root = photograph
    use_tta(cfg)
    write_submission(cfg, 'out')
    check_inputs(cfg, ('test',))
    with DefaultScope.overwrite_default_scope('mmseg'):
        views = DATASETS.build(cfg.test_dataloader.dataset)[0]['data_samples']
    # tells IoUMetric to write classes from 1 on, as ADE20K numbers them
    assert len(views) == 12 and all(view.reduce_zero_label is True for view in views)


def test_submissions_need_a_metric_that_writes_them():
    cfg = Config(dict(test_evaluator=[dict(type='CocoMetric'), dict(type='mmpretrain.Accuracy')]))
    with pytest.raises(ValueError, match='Accuracy writes no files, only CocoMetric and IoU'):
        write_submission(cfg, 'out')


def test_submissions_keep_all_but_annotations():
    load, maps, pack = dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='P')
    sizes = [dict(type='Resize', scale=(size, size)) for size in (1, 2)]
    views = dict(type='TestTimeAug', transforms=[sizes, [maps], [pack]])
    for given, kept in (
        ([load, maps, pack], [load, pack]),
        ([load, views], [load, dict(views, transforms=[sizes, [pack]])]),
    ):
        dataset = dict(pipeline=given, data_prefix=dict(img_path='a', seg_map_path='b'))
        loader = dict(dataset=dataset)
        cfg = Config(dict(test_dataloader=loader, test_evaluator=dict(type='IoUMetric')))
        write_submission(cfg, 'out')
        assert cfg.test_dataloader.dataset.to_dict() == dict(
            pipeline=kept, data_prefix=dict(img_path='a')
        )
        assert cfg.test_evaluator == dict(type='IoUMetric', format_only=True, output_dir='out')


def test_existing_submissions_are_kept_or_told(tmp_path, capsys):
    target = tmp_path / 'mine'
    cfg = Config(
        dict(
            test_evaluator=dict(type='CocoMetric'),
            test_dataloader=dict(dataset=dict(pipeline=[])),
        )
    )
    write_submission(cfg, str(target))
    for kind in ('bbox', 'segm', 'proposal'):
        path = Path(f'{target}.{kind}.json')
        path.touch()
        with pytest.raises(FileExistsError, match=rf'mine\.{kind}\.json exists; --overwrite'):
            write_submission(cfg, str(target))
        write_submission(cfg, str(target), overwrite=True)
        path.unlink()
    assert not capsys.readouterr().out
    Path(f'{target}.segm.json').touch()
    (tmp_path / 'maps').mkdir()
    (tmp_path / 'maps' / 'a.png').touch()
    metrics = [dict(type='CocoMetric', outfile_prefix=str(target))]
    metrics.append(dict(type='IoUMetric', output_dir=str(tmp_path / 'maps')))
    tell_written_by_metrics(Config(dict(val_evaluator=metrics)), 'val')  # of the config's own
    told = capsys.readouterr().out
    assert 'mine.segm.json exists and is replaced' in told and 'maps is not empty' in told
    cfg.test_evaluator = dict(type='IoUMetric')
    write_submission(cfg, str(tmp_path / 'maps'))
    assert 'maps is not empty: files of the same name are replaced' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('hook', 'is_told'),
    [(dict(enable=True), 1), (dict(test_out_dir='a'), 1), (dict(draw=True), 0), ({}, 0)],
)
def test_names_of_the_hosts_own_drawings_are_told(capsys, hook, is_told):
    warn_of_base_names(Config(dict(default_hooks=dict(visualization=hook))))
    assert ('by the base names of the images' in capsys.readouterr().out) == is_told


@pytest.mark.parametrize('change', [use_tta, lambda cfg: write_submission(cfg, 'out')])
def test_wrapped_test_sets_are_refused(change):
    wrapped = dict(type='ConcatDataset', datasets=[])
    cfg = Config(
        dict(
            default_scope='mmdet',
            model=dict(type='MaskRCNN'),
            tta_model=dict(type='MaskTTAModel'),
            tta_pipeline=[],
            test_dataloader=dict(dataset=wrapped),
            test_evaluator=dict(type='CocoMetric'),
        )
    )
    with pytest.raises(ValueError, match=r"test_dataloader.dataset.type='ConcatDataset'"):
        change(cfg)


@pytest.mark.parametrize('content', [b'{', b'{"a": "\xff"}', b'[]'])
def test_damaged_annotations_are_left_to_the_check_of_the_inputs(tmp_path, content):
    (tmp_path / 'a.json').write_bytes(content)
    dataset = dict(type='CocoDataset', data_root=str(tmp_path), ann_file='a.json')
    cfg = Config(
        dict(
            default_scope='mmdet',
            test_dataloader=dict(dataset=dataset),
            test_evaluator=dict(type='CocoMetric', ann_file=str(tmp_path / 'a.json')),
        )
    )
    assert nothing_to_score(cfg) is None
    with pytest.raises(InputError, match=r'a\.json is (not JSON|a list)'):
        check_inputs(cfg, ['test'])

# SPDX-License-Identifier: Apache-2.0
"""Training steps and data loading of detectors on digit scenes."""

import math

import detector
import pytest

FOCAL = 'configs/quickstart/focal_nano_maskrcnn.py'
SWIN = 'configs/quickstart/swin_nano_maskrcnn.py'
RECIPE = 'configs/detection/focal_t_maskrcnn_3x.py'


@pytest.fixture
def options(scenes, tmp_path) -> list[str]:
    """Options of every run here; the rows go into ``tmp_path / 'rows.csv'``."""
    text = f'--data-root {scenes} --threads 1 --device cpu --csv {tmp_path / "rows.csv"}'
    return text.split()


def test_steps(repo_root, options, tmp_path, read_rows):
    arguments = [repo_root / FOCAL, '--baseline', repo_root / SWIN, '--rounds', 2]
    arguments += ['--workers', 0, '--cfg-options', 'train_dataloader.batch_size=2']
    detector.main([*map(str, arguments), *options])
    focal, swin = read_rows(tmp_path / 'rows.csv')
    assert (focal['config'], swin['config']) == ('focal_nano_maskrcnn', 'swin_nano_maskrcnn')
    seen = (focal['data'], focal['batch'], focal['megapixels'], focal['workers'])
    assert seen == ('digit_scenes', '2', '0.0256', '0')
    for row in (focal, swin):
        parts = [float(row[f'{part}_ms']) for part in detector.PARTS]
        assert min(parts) > 0
        # with two rounds medians are means
        assert math.isclose(sum(parts), float(row['ms']), rel_tol=1e-3)
        assert math.isclose(float(row['images_per_s']), 2000 / float(row['ms']), rel_tol=1e-3)
        assert row['baseline'] == 'swin_nano_maskrcnn'
    assert float(swin['ratio']) == 1 != float(focal['ratio'])


def test_loader(repo_root, options, tmp_path, read_rows, capsys):
    arguments = [repo_root / RECIPE, '--loader-only', '--workers', 2, 1, '--batches', 2]
    arguments += ['--images-per-second', 1e-3, '--gpus', 8]
    detector.main([*map(str, arguments), *options])
    one, two = read_rows(tmp_path / 'rows.csv')
    assert (one['workers'], two['workers'], one['batch']) == ('1', '2', '2')
    for row in (one, two):
        rate = float(row['images_per_s_per_worker'])
        assert rate > 0
        assert math.isclose(float(row['images_per_s']), rate * int(row['workers']), rel_tol=1e-4)
    assert '8 GPU(s)' in (printed := capsys.readouterr().out)
    assert 'num_workers = 1 per GPU, 1 busy core(s) in all' in printed


def test_advice():
    rows = [dict(images_per_s_per_worker=12.5), dict(images_per_s_per_worker=10.0)]
    assert 'num_workers = 3 per GPU, 9 busy core(s) in all' in detector.advise(rows, 26, 4)
    assert 'num_workers = 2 per GPU, 2 busy core(s) in all' in detector.advise(rows, 25, 1)


def test_classes_are_those_of_the_data(repo_root, scenes):
    args = detector.parse_args([str(repo_root / RECIPE), '--data-root', str(scenes)])
    cfg = detector.load_config(detector.make_case(args.config, args, 0))
    assert len(cfg.train_dataloader.dataset.metainfo['classes']) == 10
    head = cfg.model.roi_head
    assert head.bbox_head.num_classes == head.mask_head.num_classes == 10
    assert 'init_cfg' not in cfg.model.backbone
    assert cfg.train_dataloader.persistent_workers is False


def test_errors(repo_root, scenes, capsys):
    arguments = [str(repo_root / FOCAL), '--data-root', str(scenes)]
    with pytest.raises(FileNotFoundError, match=r'absent\.json does not exist; --ann-file'):
        detector.main([*arguments, '--ann-file', 'absent.json'])
    for options, message in (
        (['--workers', '1', '2'], 'with --loader-only only'),
        (['--loader-only', '--workers', '0'], 'at least 1'),
    ):
        with pytest.raises(SystemExit):
            detector.parse_args([*arguments, *options])
        assert message in capsys.readouterr().err

# SPDX-License-Identifier: Apache-2.0
"""Label maps that are missing, unreduced or of other classes are named before training."""

from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmfocal.engine import InputError, check_inputs

KEY = 'train_dataloader.dataset'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Sixty images; labels 0 and, in the last ones, up to 150."""
    for folder in ('images', 'annotations'):
        (tmp_path / folder).mkdir()
    for index in range(60):
        Image.new('RGB', (2, 1)).save(tmp_path / 'images' / f'{index:02d}.jpg')
        save(tmp_path, index, [[0, max(0, 91 + index)]])
    return tmp_path


def save(root: Path, index: int, labels: list, dtype: type = np.uint8) -> Path:
    path = root / 'annotations' / f'{index:02d}.png'
    Image.fromarray(np.array(labels, dtype)).save(path)
    return path


def segmentation(root: Path, **changes) -> Config:
    dataset = dict(
        type='ADE20KDataset',
        data_root=str(root),
        data_prefix=dict(img_path='images', seg_map_path='annotations'),
        pipeline=[dict(type='LoadAnnotations', reduce_zero_label=True)],
    )
    loader = dict(dataset={**dataset, **changes})
    return Config(dict(default_scope='mmseg', train_dataloader=loader))


def test_ade20k_passes(root):
    check_inputs(segmentation(root))


def test_a_missing_label_map_is_named(root):
    (root / 'annotations' / '07.png').unlink()
    with pytest.raises(InputError) as error:
        check_inputs(segmentation(root))
    assert str(error.value) == (
        f'{KEY}.data_prefix.seg_map_path: 1 of 60 label maps are missing, the first is '
        f'{root}/annotations/07.png'
    )


def test_images_of_another_suffix_are_no_images(root):
    with pytest.raises(InputError) as error:
        check_inputs(segmentation(root, img_suffix='.png'))
    assert f'{KEY}.data_prefix.img_path: no file in {root}/images ends in' in str(error.value)
    assert "'.png' (img_suffix)" in str(error.value)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_labels_beyond_the_classes_are_named(root, dtype):
    value = 3000 if dtype is np.uint16 else 151  # mmseg would read 3000 modulo 256
    path = save(root, 59, [[0, value]], dtype)
    with pytest.raises(ValueError) as error:
        check_inputs(segmentation(root))
    assert str(error.value) == (
        f'{KEY}.data_prefix.seg_map_path: {path} has label {value}; expected 0 to 150, or 255 for '
        'none (150 classes, reduce_zero_label=True: 0 is no class)'
    )


def test_color_images_are_no_labels(root):
    path = save(root, 0, [[[20, 120, 5]]])  # as in the full ADE20K
    with pytest.raises(ValueError, match=f'{path} has 3 channels; expected one label per pixel'):
        check_inputs(segmentation(root))


def test_labels_are_integers(root):
    path = root / 'annotations' / '00.png'
    for value in (91, 0.5):
        Image.fromarray(np.array([[0, value]], np.float32)).save(path, 'TIFF')
        if value == 91:
            check_inputs(segmentation(root))
    with pytest.raises(ValueError, match=f'{path} has label 0.5; expected integers'):
        check_inputs(segmentation(root))


def test_a_damaged_file_is_named(root):
    path = root / 'annotations' / '00.png'
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=f'seg_map_path: {path} cannot be read'):
        check_inputs(segmentation(root))


@pytest.mark.parametrize('loader', [{}, dict(reduce_zero_label=None)])
def test_unreduced_labels_need_reduce_zero_label(root, loader):
    pipeline = [dict(type='LoadAnnotations', **loader)]
    cfg = segmentation(root, reduce_zero_label=False, pipeline=pipeline)
    with pytest.raises(ValueError) as error:
        check_inputs(cfg)
    assert '59.png has label 150; expected 0 to 149' in str(error.value)
    assert 'reduce_zero_label=False: 0 is the first class' in str(error.value)
    save(root, 59, [[0, 149]])  # detected by the missing 255, too
    with pytest.raises(ValueError, match='reduce_zero_label=False, but ADE20KDataset counts'):
        check_inputs(cfg)
    save(root, 59, [[255, 149]])  # labels that are reduced already
    check_inputs(cfg)


def test_reduced_labels_must_not_be_reduced_again(root):
    save(root, 59, [[255, 149]])
    with pytest.raises(ValueError) as error:
        check_inputs(segmentation(root))
    assert 'seg_map_path: reduce_zero_label=True, and ADE20KDataset counts' in str(error.value)
    assert f'{root}/annotations/00.png' in str(error.value)
    save(root, 0, [[150, 255]])  # 255 means no label, and 150 shows that they are not reduced
    check_inputs(segmentation(root))


def test_transforms_must_agree_about_reduce_zero_label(root):
    views = dict(type='TestTimeAug', transforms=[[dict(type='LoadAnnotations')]])
    views['transforms'][0][0]['reduce_zero_label'] = False
    with pytest.raises(ValueError) as error:
        check_inputs(segmentation(root, pipeline=[views]))
    assert str(error.value) == (
        f'{KEY}.pipeline: LoadAnnotations has reduce_zero_label=False, but {KEY} has '
        'reduce_zero_label=True'
    )


def test_a_choice_of_classes_keeps_the_labels_of_all(root):
    check_inputs(segmentation(root, metainfo=dict(classes=('wall', 'flag'))))


def test_labels_that_are_not_loaded_are_not_looked_at(root):
    (root / 'annotations' / '07.png').unlink()
    check_inputs(segmentation(root, pipeline=[dict(type='LoadImageFromFile')]))


def test_own_classes(root):
    changes = dict(type='BaseSegDataset', metainfo=dict(classes=('ground', 'other')))
    changes['pipeline'] = [dict(type='LoadAnnotations')]
    with pytest.raises(ValueError, match=r'00\.png has label 91; expected 0 to 1, or 255'):
        check_inputs(segmentation(root, **changes))
    for index in range(60):
        save(root, index, [[1, 0 if index else 255]])
    check_inputs(segmentation(root, **changes))

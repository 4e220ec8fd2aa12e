# SPDX-License-Identifier: Apache-2.0
"""Label maps painted from instances, and read back by the hosts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from mmfocal.datasets.label_maps import write_label_maps, write_stuff_maps

SHAPE = (6, 8)


def rectangle(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def rle(mask: np.ndarray) -> dict:
    encoded = mask_utils.encode(np.asfortranarray(mask, np.uint8))
    return dict(size=encoded['size'], counts=encoded['counts'].decode())


def runs(mask: np.ndarray) -> dict:
    """Uncompressed RLE, as COCO has it for crowds: lengths of runs down the columns."""
    counts, value = [0], 0
    for pixel in mask.T.ravel():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return dict(size=list(mask.shape), counts=counts)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One training image with a large person, a small kite on it and a crowd; one empty image."""
    root = tmp_path / 'coco'
    crowd = np.zeros(SHAPE, np.uint8)
    crowd[4:, 5:] = 1
    dot = np.zeros(SHAPE, np.uint8)
    dot[0, 7] = 1
    kite = dict(image_id=1, category_id=38, iscrowd=0, area=4)
    person = dict(image_id=1, category_id=1, iscrowd=0, area=24)
    annotations = [
        dict(kite, id=1, segmentation=rectangle(1, 1, 3, 3)),
        dict(person, id=2, segmentation=rectangle(0, 0, 4, 6)),
        dict(person, id=3, segmentation=runs(crowd), iscrowd=1),
        dict(kite, id=4, segmentation=rle(dot)),
    ]
    for split, folder in (('train2017', 'sub'), ('val2017', '.')):
        size = dict(height=SHAPE[0], width=SHAPE[1])
        images = [dict(id=1, file_name='a.jpg', **size)]
        images.append(dict(id=2, file_name=str(Path(folder, 'b.jpg')), **size))
        content = dict(
            images=images,
            annotations=annotations,
            categories=[dict(id=1, name='person'), dict(id=38, name='kite')],
        )
        (root / split / folder).mkdir(parents=True)
        for image in images:
            Image.new('RGB', SHAPE[::-1], (9, 99, 199)).save(root / split / image['file_name'])
        (root / 'annotations').mkdir(exist_ok=True)
        (root / f'annotations/instances_{split}.json').write_text(json.dumps(content))
    return root


def expected(nothing: int, person: int, kite: int) -> np.ndarray:
    labels = np.full(SHAPE, nothing)
    labels[:, :4] = person
    labels[1:3, 1:3] = kite
    labels[4:, 5:] = person
    labels[0, 7] = kite
    return labels


def edit(root: Path, change: Callable[[dict], object]) -> None:
    path = root / 'annotations' / 'instances_train2017.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def read(path: Path) -> np.ndarray:
    image = Image.open(path)
    assert image.mode == 'L'
    return np.asarray(image)


def test_label_maps_count_categories_from_one(root, tmp_path):
    out = tmp_path / 'ade'
    assert write_label_maps(root, out) == 4
    for folder in ('training', 'validation'):
        labels = read(out / 'annotations' / folder / 'a.png')
        np.testing.assert_array_equal(labels, expected(0, 1, 2))
    assert not read(out / 'annotations/training/sub/b.png').any()
    assert (out / 'images/training/a.jpg').readlink() == root / 'train2017' / 'a.jpg'
    assert (out / 'images/training/sub/b.jpg').is_file()
    assert (out / 'classes.txt').read_text() == 'person\nkite\n'


def test_stuff_maps_have_ids_minus_one(root, tmp_path):
    assert write_stuff_maps(root, tmp_path / 'stuff', splits=['train2017']) == 2
    np.testing.assert_array_equal(read(tmp_path / 'stuff/train2017/a.png'), expected(255, 0, 37))
    assert (read(tmp_path / 'stuff/train2017/sub/b.png') == 255).all()
    assert not (tmp_path / 'stuff' / 'val2017').exists()


def test_copies_stand_alone(root, tmp_path):
    write_label_maps(root, tmp_path / 'ade', splits=['val2017'], copy=True)
    copied = tmp_path / 'ade/images/validation/a.jpg'
    assert not copied.is_symlink()
    assert copied.read_bytes() == (root / 'val2017' / 'a.jpg').read_bytes()


def test_nothing_is_replaced_silently(root, tmp_path):
    out = tmp_path / 'ade'
    write_label_maps(root, out)
    edit(root, lambda content: content['annotations'].clear())
    with pytest.raises(FileExistsError, match='training holds 2 files already; --overwrite'):
        write_label_maps(root, out)
    assert read(out / 'annotations/training/a.png').any()
    write_label_maps(root, out, overwrite=True)
    assert not read(out / 'annotations/training/a.png').any()
    assert (root / 'train2017' / 'a.jpg').is_file()
    (out / 'annotations' / 'training' / 'mine.png').touch()
    with pytest.raises(FileExistsError, match=r'with other names, the first is mine\.png'):
        write_label_maps(root, out, overwrite=True)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda c: c['annotations'][0].pop('segmentation'), 'id=1 has segmentation=None'),
        (lambda c: c['annotations'][0].update(segmentation=[]), r'id=1 has segmentation=\[\]'),
        (
            lambda c: c['annotations'][0].update(segmentation=[[1, 1, 3, 3]]),
            r'id=1 has segmentation=\[\[1, 1, 3, 3\]\]; expected RLE, or polygons of at least 3',
        ),
        (lambda c: c['annotations'][1].update(category_id=5), 'id=2 has unknown category_id=5'),
        (lambda c: c['images'][0].update(height=5), r'id=3 has a mask of \(6, 8\), its image'),
        (lambda c: c['categories'][1].update(name='bird'), 'train2017, val2017 differ'),
    ],
)
def test_unusable_instances_are_named(root, tmp_path, change, message):
    edit(root, change)
    with pytest.raises(ValueError, match=message):
        write_label_maps(root, tmp_path / 'ade')


@pytest.mark.parametrize('write', [write_label_maps, write_stuff_maps])
@pytest.mark.parametrize(
    ('first', 'second', 'message'),
    [
        ('{tmp}/mine.png', 'b.jpg', r"id=1 has file_name='/.*mine\.png'; expected a path below"),
        ('../../mine.png', 'b.jpg', r"id=1 has file_name='\.\./\.\./mine\.png'"),
        ('sub/../../mine.png', 'b.jpg', "without '..'"),
        ('.', 'b.jpg', r"id=1 has file_name='\.'"),
        (7, 'b.jpg', 'id=1 has file_name=7'),
        ('a.jpg', 'a.png', r'id=1 \(a\.jpg\) and id=2 \(a\.png\) would share .* a\.png'),
        ('a.jpg', './a.jpg', r'id=1 \(a\.jpg\) and id=2 \(\./a\.jpg\) would share'),
        ('a.jpg', 'a.jpg', r'id=1 \(a\.jpg\) and id=2 \(a\.jpg\) would share'),
    ],
)
def test_images_without_a_map_of_their_own(root, tmp_path, write, first, second, message):
    mine = tmp_path / 'mine.png'
    Image.new('RGB', SHAPE[::-1], 'red').save(mine)
    before = mine.read_bytes()
    shutil.copy(mine, root / 'train2017' / 'a.png')
    names = (first.format(tmp=tmp_path) if isinstance(first, str) else first, second)
    edit(root, lambda c: [i.update(file_name=n) for i, n in zip(c['images'], names)])
    with pytest.raises(ValueError, match=message):
        write(root, tmp_path / 'out', splits=['val2017', 'train2017'], overwrite=True)
    assert not mine.is_symlink() and mine.read_bytes() == before
    assert not (tmp_path / 'out').exists()


def test_the_images_are_not_an_output_folder(root, tmp_path):
    source = root / 'train2017'
    (source / 'sub/b.jpg').unlink()
    (source / 'sub').rmdir()
    before = (source / 'a.jpg').rename(source / 'a.png').read_bytes()
    edit(root, lambda c: c.update(images=[dict(c['images'][0], file_name='a.png')]))
    linked = tmp_path / 'ade' / 'images'
    linked.mkdir(parents=True)
    (linked / 'training').symlink_to(source, target_is_directory=True)
    for write, out in ((write_stuff_maps, root), (write_label_maps, tmp_path / 'ade')):
        with pytest.raises(FileExistsError, match=r'a\.png is the image .* itself'):
            write(root, out, splits=['train2017'], overwrite=True)
    # a link to the image is replaced, not followed
    (tmp_path / 'stuff/train2017').mkdir(parents=True)
    (tmp_path / 'stuff/train2017/a.png').symlink_to(source / 'a.png')
    write_stuff_maps(root, tmp_path / 'stuff', splits=['train2017'], overwrite=True)
    np.testing.assert_array_equal(read(tmp_path / 'stuff/train2017/a.png'), expected(255, 0, 37))
    assert (source / 'a.png').read_bytes() == before


def test_classes_of_another_split_are_kept(root, tmp_path):
    out = tmp_path / 'ade'
    edit(root, lambda c: c['categories'][1].update(name='bird'))
    write_label_maps(root, out, splits=['train2017'])
    with pytest.raises(FileExistsError, match=r'classes\.txt has other classes; --overwrite'):
        write_label_maps(root, out, splits=['val2017'])
    assert (out / 'classes.txt').read_text() == 'person\nbird\n'


def test_labels_must_fit_into_eight_bits(root, tmp_path):
    edit(root, lambda content: content['categories'].append(dict(id=256, name='much')))
    with pytest.raises(ValueError, match=r'train2017\.json: a category would get label 255'):
        write_stuff_maps(root, tmp_path / 'stuff')


def test_missing_files_are_named(root, tmp_path):
    (root / 'train2017' / 'sub' / 'b.jpg').unlink()
    with pytest.raises(FileNotFoundError, match=r'1 of 2 images are not in .* is sub/b\.jpg'):
        write_label_maps(root, tmp_path / 'ade')
    (root / 'annotations' / 'instances_val2017.json').unlink()
    with pytest.raises(FileNotFoundError, match=r'val2017\.json does not exist; expected COCO'):
        write_stuff_maps(root, tmp_path / 'stuff')


def test_mmseg_reads_label_maps(root, tmp_path):
    mmseg = pytest.importorskip('mmseg.datasets')
    write_label_maps(root, tmp_path / 'ade')
    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    settings = dict(
        data_root=str(tmp_path / 'ade'),
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=[dict(step, _scope_='mmseg') for step in pipeline],
    )
    ade = mmseg.ADE20KDataset(**settings)
    assert len(ade) == 2
    np.testing.assert_array_equal(ade[0]['gt_seg_map'], expected(255, 0, 1))
    assert ade[0]['img'].shape == (*SHAPE, 3)
    own = mmseg.BaseSegDataset(
        metainfo=dict(classes=str(tmp_path / 'ade' / 'classes.txt')),
        reduce_zero_label=True,
        **settings,
    )
    assert own.metainfo['classes'] == ['person', 'kite']
    np.testing.assert_array_equal(own[0]['gt_seg_map'], expected(255, 0, 1))


def test_mmdet_reads_stuff_maps(root, tmp_path):
    mmdet = pytest.importorskip('mmdet.datasets')
    write_stuff_maps(root, root / 'stuffthingmaps')
    edit(root, lambda c: [a.update(bbox=[0, 0, 4, 6]) for a in c['annotations']])
    dataset = mmdet.CocoDataset(
        metainfo=dict(classes=('person', 'kite')),
        data_root=str(root),
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/', seg='stuffthingmaps/train2017/'),
        pipeline=[
            dict(type='mmdet.LoadImageFromFile'),
            dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True, with_seg=True),
        ],
    )
    assert len(dataset) == 2
    np.testing.assert_array_equal(dataset[0]['gt_seg_map'], expected(255, 0, 37))
    # the label maps and mmdet agree about the numbering of classes
    assert dataset[0]['gt_bboxes_labels'].tolist() == [1, 0, 0, 1]


def test_real_photographs(repo_root, tmp_path):
    """A label is of an instance that covers the pixel; no smaller one of another category does."""
    coco_tiny = repo_root.parent / 'shared' / 'data' / 'coco_tiny'
    if not coco_tiny.is_dir():
        pytest.skip(f'{coco_tiny} is absent')
    content = json.loads((coco_tiny / 'annotations/instances_val2017.json').read_text())
    crowded = [a['image_id'] for a in content['annotations'] if a['iscrowd']][:4]
    root = tmp_path / 'few'
    (root / 'annotations').mkdir(parents=True)
    content['images'] = [i for i in content['images'] if i['id'] in crowded]
    (root / 'annotations/instances_val2017.json').write_text(json.dumps(content))
    write_stuff_maps(root, tmp_path / 'stuff', splits=['val2017'])
    for image in content['images']:
        shape = image['height'], image['width']
        smallest, labels = np.full(shape, np.inf), np.full(shape, 255)
        for annotation in content['annotations']:
            if annotation['image_id'] != image['id']:
                continue
            regions = annotation['segmentation']
            regions = mask_utils.frPyObjects(regions, *shape)
            if isinstance(regions, list):
                regions = mask_utils.merge(regions)
            mask = mask_utils.decode(regions).astype(bool)
            visible = mask & (mask.sum() <= smallest)
            smallest[visible], labels[visible] = mask.sum(), annotation['category_id'] - 1
        name = image['file_name'].replace('.jpg', '.png')
        np.testing.assert_array_equal(read(tmp_path / 'stuff/val2017' / name), labels)
        assert len(np.unique(labels)) > 2

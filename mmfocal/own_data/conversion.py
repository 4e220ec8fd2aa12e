# SPDX-License-Identifier: Apache-2.0
"""Conversion of YOLO, Pascal VOC, CVAT and labelme annotations to COCO files."""

import json
import shutil
import tempfile
from pathlib import Path, PureWindowsPath

import numpy as np

FORMATS = ('coco', 'yolo', 'voc', 'cvat', 'labelme')


def to_coco(
    form: str, labels: str, images: str, target: str | Path, names: str | None = None
) -> None:
    """Write annotations as a COCO instances file.

    Args:
        form: ``'yolo'``, ``'voc'`` (read by supervision), ``'cvat'`` (read by datumaro, which must
            be installed) or ``'labelme'``.
        labels: Folder of the annotations; for CVAT the XML file.
        images: Folder of the images.
        target: File to write.
        names: YOLO's ``data.yaml``, which names the classes.

    Raises:
        ModuleNotFoundError: If datumaro is needed and missing.
        ValueError: If the format is unknown or if nothing was found.
    """
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    if form in ('yolo', 'voc'):
        _by_supervision(form, labels, images, str(target), names)
    elif form == 'cvat':
        _by_datumaro(labels, images, target)
    elif form == 'labelme':
        _from_labelme(labels, target)
    else:
        raise ValueError(f'format {form!r}; expected one of {FORMATS}')


def _by_supervision(form: str, labels: str, images: str, target: str, names: str | None) -> None:
    import supervision as sv

    if form == 'voc':
        dataset = sv.DetectionDataset.from_pascal_voc(images, labels)
    elif names is None:
        raise ValueError("YOLO's files hold numbers only; pass data.yaml by --names")
    else:
        dataset = sv.DetectionDataset.from_yolo(images, labels, names)
    if not len(dataset):
        raise ValueError(f'{images} holds no images with annotations in {labels}')
    dataset.as_coco(annotations_path=target)


def _by_datumaro(labels: str, images: str, target: str | Path) -> None:
    """Read CVAT's XML, which datumaro expects next to a folder ``images``."""
    try:
        import datumaro
    except ImportError as error:
        raise ModuleNotFoundError(
            "reading CVAT's files needs datumaro: pip install 'mmfocal[labels]'"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        source, written = Path(folder, 'source'), Path(folder, 'written')
        source.mkdir()
        shutil.copy2(labels, source / 'annotations.xml')
        (source / 'images').symlink_to(Path(images).resolve(), target_is_directory=True)
        dataset = datumaro.Dataset.import_from(str(source), 'cvat')
        dataset.export(str(written), 'coco_instances', save_media=False)
        (found, *_) = sorted(written.glob('annotations/*.json'))
        shutil.move(found, target)


def _from_labelme(labels: str, target: str | Path) -> None:
    """Read a folder of labelme's JSON files, polygons and rectangles."""
    files = sorted(Path(labels).glob('*.json'))
    contents = [json.loads(path.read_text(encoding='utf-8')) for path in files]
    names = sorted({shape['label'] for content in contents for shape in content.get('shapes', [])})
    if not names:
        raise ValueError(f'{labels} holds no JSON files of labelme with shapes')
    coco: dict = dict(
        images=[],
        annotations=[],
        categories=[dict(id=index + 1, name=name) for index, name in enumerate(names)],
    )
    for path, content in zip(files, contents):
        image = dict(
            id=len(coco['images']) + 1,
            file_name=PureWindowsPath(content['imagePath']).name,  # POSIX and Windows paths
            height=content['imageHeight'],
            width=content['imageWidth'],
        )
        coco['images'].append(image)
        for shape in content['shapes']:
            annotation = dict(
                id=len(coco['annotations']) + 1,
                image_id=image['id'],
                category_id=names.index(shape['label']) + 1,
                iscrowd=0,
                **_outline(shape, path),
            )
            coco['annotations'].append(annotation)
    Path(target).write_text(json.dumps(coco), encoding='utf-8')


def _outline(shape: dict, path: Path) -> dict:
    """Return polygon, box and area of a shape."""
    points = np.array(shape['points'], dtype=float)
    kind = shape.get('shape_type', 'polygon')
    if kind == 'rectangle':
        (x1, y1), (x2, y2) = points.min(0), points.max(0)
        points = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])
    elif kind != 'polygon':
        raise ValueError(f'{path}: shape_type={kind!r}; expected polygon or rectangle')
    low, high = points.min(0), points.max(0)
    x, y = points.T
    area = 0.5 * abs(x @ np.roll(y, 1) - y @ np.roll(x, 1))
    return dict(
        segmentation=[points.ravel().tolist()],
        bbox=[*low.tolist(), *(high - low).tolist()],
        area=float(area),
    )

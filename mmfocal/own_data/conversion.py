# SPDX-License-Identifier: Apache-2.0
"""Conversion of YOLO, Pascal VOC, CVAT and labelme annotations to COCO files."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import yaml

from .annotations import load_coco

FORMATS = ('coco', 'yolo', 'voc', 'cvat', 'labelme')


def to_coco(form: str, labels: str, images: str, names: str | None = None) -> dict:
    """Read the annotations of a split as the content of a COCO instances file.

    Args:
        form: ``'coco'``, ``'yolo'``, ``'voc'`` (read by supervision), ``'cvat'`` (read by
            datumaro, which must be installed) or ``'labelme'``.
        labels: Folder of the annotations; for COCO the JSON file, for CVAT the XML file.
        images: Folder of the images.
        names: YOLO's ``data.yaml``, which names the classes.

    Returns:
        ``images``, ``annotations`` and ``categories``. A format that does not list its classes
        has those that occur in this split, sorted.

    Raises:
        ModuleNotFoundError: If datumaro is needed and missing.
        ValueError: If the format is unknown or if nothing was found.
    """
    if form == 'coco':
        return load_coco(labels)
    if form in ('yolo', 'voc'):
        return _by_supervision(form, labels, images, names)
    if form == 'cvat':
        return _by_datumaro(labels, images)
    if form == 'labelme':
        return _from_labelme(labels)
    raise ValueError(f'format {form!r}; expected one of {FORMATS}')


def share_categories(contents: Sequence[dict], classes: Sequence[str] = ()) -> None:
    """Give the splits of a data set the same categories, numbered from 1.

    Args:
        contents: Contents of COCO files; changed in place.
        classes: Names in the order of their indices. By default those of the files if they agree,
            otherwise those of all files, sorted.

    Raises:
        ValueError: If instances belong to a class that ``classes`` lacks.
    """
    lists = [[category['name'] for category in content['categories']] for content in contents]
    names = list(classes) or lists[0]
    if not classes and any(other != names for other in lists):
        names = sorted(set().union(*lists))
    for content in contents:
        known = {category['id']: category['name'] for category in content['categories']}
        for annotation in content['annotations']:
            name = known.get(annotation['category_id'])
            if name not in names:
                raise ValueError(f'{name!r} is annotated, but --classes names only {names}')
            annotation['category_id'] = names.index(name) + 1
        content['categories'] = [dict(id=i + 1, name=name) for i, name in enumerate(names)]


def _by_supervision(form: str, labels: str, images: str, names: str | None) -> dict:
    import supervision as sv

    if form == 'voc':
        dataset = sv.DetectionDataset.from_pascal_voc(images, labels)
    elif names is None:
        raise ValueError("YOLO's files hold numbers only; pass data.yaml with --names")
    else:
        dataset = _from_yolo(images, labels, names)
    if not len(dataset):
        raise ValueError(f'{images} holds no images with annotations in {labels}')
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, 'coco.json')
        dataset.as_coco(annotations_path=str(target))
        content = json.loads(target.read_text(encoding='utf-8'))
    if not content['annotations']:
        raise ValueError(f'{labels} holds no annotations of the images in {images}')
    if form == 'yolo':  # gaps between the indices are no classes
        content['categories'] = [each for each in content['categories'] if each['name']]
    if form == 'voc':  # supervision numbers classes as they appear
        content['categories'].sort(key=lambda category: category['name'])
    return content


def _from_yolo(images: str, labels: str, names: str) -> Any:
    """Read YOLO's files with supervision, whose list of names has no gaps."""
    import supervision as sv

    classes = _yolo_names(names)
    stems = {path.stem for path in Path(images).iterdir()}
    files = (path for path in sorted(Path(labels).glob('*.txt')) if path.stem in stems)
    for path in files:  # others, such as classes.txt, are not read
        for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), start=1):
            label = line.split()[0] if line.split() else None
            if label is not None and not (label.isdecimal() and int(label) in classes):
                raise ValueError(
                    f'{path}, line {number}: class {label}; expected one of the indices in '
                    f'{names}: {", ".join(map(str, classes))}'
                )
    listed = [classes.get(index, '') for index in range(max(classes) + 1)]
    with tempfile.TemporaryDirectory() as folder:
        complete = Path(folder, 'data.yaml')
        complete.write_text(yaml.safe_dump(dict(names=listed)), encoding='utf-8')
        return sv.DetectionDataset.from_yolo(images, labels, str(complete))


def _yolo_names(path: str) -> dict[int, str]:
    """Read the names of the classes by index: a list, or a dict, which may have gaps."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is not YAML: {" ".join(str(error).split())}') from error
    names = content.get('names') if isinstance(content, dict) else None
    if isinstance(names, (list, tuple)):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise ValueError(f'{path}: names={names!r}; expected a list of classes, or index: class')
    for index in names:
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise ValueError(f'{path}: names has the key {index!r}; expected an index from 0 on')
    return {index: str(names[index]) for index in sorted(names)}


def _by_datumaro(labels: str, images: str) -> dict:
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
        return json.loads(found.read_text(encoding='utf-8'))


def _from_labelme(labels: str) -> dict:
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
    return coco


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

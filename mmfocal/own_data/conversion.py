# SPDX-License-Identifier: Apache-2.0
"""Annotations of other tools as COCO files: YOLO and Pascal VOC, CVAT and labelme."""

import shutil
import tempfile
from pathlib import Path

FORMATS = ('coco', 'yolo', 'voc', 'cvat', 'labelme')


def to_coco(
    form: str, labels: str, images: str, target: str | Path, names: str | None = None
) -> None:
    """Write annotations as a COCO instances file.

    Args:
        form: ``'yolo'``, ``'voc'`` (read by supervision), ``'cvat'`` or ``'labelme'`` (read by
            datumaro, which must be installed).
        labels: Folder of the annotations; CVAT's is its XML file.
        images: Folder of the pictures.
        target: File to write.
        names: YOLO's ``data.yaml``, which names the classes.

    Raises:
        ModuleNotFoundError: If datumaro is needed and missing.
        ValueError: If the format is unknown or if nothing was found.
    """
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    if form in ('yolo', 'voc'):
        _by_supervision(form, labels, images, str(target), names)
    elif form in ('cvat', 'labelme'):
        _by_datumaro(form, labels, target)
    else:
        raise ValueError(f'format {form!r}; expected one of {FORMATS}')


def _by_supervision(form: str, labels: str, images: str, target: str, names: str | None) -> None:
    import supervision as sv

    if form == 'voc':
        dataset = sv.DetectionDataset.from_pascal_voc(images, labels)
    elif names is None:
        raise ValueError("YOLO's files hold numbers only; give data.yaml by --names")
    else:
        dataset = sv.DetectionDataset.from_yolo(images, labels, names)
    if not len(dataset):
        raise ValueError(f'{images} holds no pictures with annotations in {labels}')
    dataset.as_coco(annotations_path=target)


def _by_datumaro(form: str, labels: str, target: str | Path) -> None:
    try:
        import datumaro
    except ImportError as error:
        raise ModuleNotFoundError(
            f'{form} files are read by datumaro: pip install "mmfocal[labels]"'
        ) from error
    source = labels if form == 'labelme' else str(Path(labels).parent)
    dataset = datumaro.Dataset.import_from(source, dict(labelme='label_me').get(form, form))
    with tempfile.TemporaryDirectory() as folder:
        dataset.export(folder, 'coco_instances', save_media=False)
        (written, *_) = sorted(Path(folder).glob('annotations/*.json'))
        shutil.move(written, target)

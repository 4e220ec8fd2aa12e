# SPDX-License-Identifier: Apache-2.0
"""Write predictions as images, videos and JSON."""

from collections.abc import Iterable
from pathlib import Path

import mmcv
import numpy as np
import supervision as sv
from mmengine import fileio

from .prediction import Boxes, LabelMap, Prediction, encode_mask
from .sources import Source, without_query

FORMATS = ('json', 'coco', 'none')


class ResultWriter:
    """Writes ``vis/NAME`` and, by format, ``preds/NAME.json`` or ``coco.json``.

    Args:
        out: Output folder, created if needed.
        form: ``'json'`` (a file per image; label maps also as images of class indices),
            ``'coco'`` (all boxes and masks in one annotation file with scores) or ``'none'``.
        draw: Whether to write images and videos.

    Raises:
        ValueError: If there is no such format.
    """

    def __init__(self, out: str | Path, form: str = 'json', draw: bool = True) -> None:
        if form not in FORMATS:
            raise ValueError(f'format {form!r}; expected one of {FORMATS}')
        self.out, self.form, self.draw = Path(out), form, draw
        self._written: set[Path] = set()
        self._coco = dict(images=[], annotations=[], categories=[])

    def write(self, source: Source, predictions: Iterable[Prediction]) -> None:
        """Write the predictions of an image, or of the frames of a video one by one.

        Args:
            source: Source of the frames.
            predictions: Predictions in the order of the frames, read lazily.

        Raises:
            ValueError: If COCO's format is requested for label maps or classes.
        """
        is_video = source.kind != 'image'
        sink, records = None, []
        try:
            for index, prediction in enumerate(predictions):
                name = f'{source.name}/{index:06d}' if is_video else source.name
                if self.draw and is_video:
                    sink = sink or self._open_video(source, prediction)
                    sink.write_frame(prediction.draw())
                elif self.draw:
                    prediction.save(self._target('vis', source.name, _image_suffix(source.path)))
                records.append(self._record(name, source, prediction))
        finally:  # also when the user stops a camera
            if sink:
                sink.__exit__(None, None, None)
            if self.form == 'json' and records:
                content = records if is_video else records[0]
                fileio.dump(content, self._target('preds', source.name, '.json'))

    def close(self) -> None:
        """Write the COCO file if this is the format and if there are images."""
        if self.form == 'coco' and self._coco['images']:
            self.out.mkdir(parents=True, exist_ok=True)
            fileio.dump(self._coco, self.out / 'coco.json')

    def _record(self, name: str, source: Source, prediction: Prediction) -> dict:
        if self.form == 'coco':
            self._add_to_coco(name, source, prediction)
        if self.form != 'json':
            return {}
        if isinstance(prediction, LabelMap):
            target = self._target('preds', name, '.png')
            kind = np.uint8 if len(prediction.classes) <= 256 else np.uint16
            mmcv.imwrite(prediction.label_map.astype(kind), str(target))
        return prediction.to_dict()

    def _add_to_coco(self, name: str, source: Source, prediction: Prediction) -> None:
        if not isinstance(prediction, Boxes):
            raise ValueError('COCO results are for detectors; use --format json')
        coco, found = self._coco, prediction.detections
        coco['categories'] = [
            dict(id=index + 1, name=label) for index, label in enumerate(prediction.classes)
        ]
        height, width = prediction.image.shape[:2]
        file_name = source.path if source.kind == 'image' else name
        image = dict(id=len(coco['images']) + 1, file_name=file_name, height=height, width=width)
        coco['images'].append(image)
        for index, (x1, y1, x2, y2) in enumerate(found.xyxy.tolist()):
            annotation = dict(
                id=len(coco['annotations']) + 1,
                image_id=image['id'],
                category_id=int(found.class_id[index]) + 1,
                bbox=[x1, y1, x2 - x1, y2 - y1],
                area=(x2 - x1) * (y2 - y1),
                iscrowd=0,
                score=float(found.confidence[index]),
            )
            if found.mask is not None:
                annotation['segmentation'] = encode_mask(found.mask[index])
                annotation['area'] = float(found.mask[index].sum())
            coco['annotations'].append(annotation)

    def _open_video(self, source: Source, prediction: Prediction) -> sv.VideoSink:
        height, width = prediction.draw().shape[:2]
        info = sv.VideoInfo(width=width, height=height, fps=source.frame_rate())
        return sv.VideoSink(str(self._target('vis', source.name, '.mp4')), info).__enter__()

    def _target(self, folder: str, name: str, suffix: str) -> Path:
        """Return a file that this writer has not written yet."""
        target = self.out / folder / f'{name}{suffix}'
        number = 2
        while target in self._written:
            target = self.out / folder / f'{name}_{number}{suffix}'
            number += 1
        self._written.add(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target


def _image_suffix(path: str) -> str:
    """Return the output suffix: JPEG stays, other formats become PNG."""
    suffix = Path(without_query(path)).suffix.lower()
    return suffix if suffix in ('.jpg', '.jpeg') else '.png'

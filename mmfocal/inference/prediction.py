# SPDX-License-Identifier: Apache-2.0
"""Predictions for one image, as numbers and as a drawing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import supervision as sv
from pycocotools import mask as coco_mask

LEGIBLE = 480  # shorter side in pixels below which images are enlarged for drawing


@dataclass
class Prediction:
    """Base class of predictions.

    Attributes:
        image: BGR image ``(H, W, 3)``, uint8.
        classes: Names of the model's classes.
    """

    image: np.ndarray
    classes: Sequence[str]

    def draw(self) -> np.ndarray:
        """Draw the prediction onto a copy of the image; small images are enlarged first.

        Returns:
            BGR image, uint8.
        """
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction as JSON data."""
        raise NotImplementedError

    def save(self, path: str | Path) -> None:
        """Write the drawing.

        Args:
            path: Image file; folders are created.
        """
        mmcv.imwrite(self.draw(), str(path))

    def _canvas(self) -> tuple[np.ndarray, int]:
        """Copy the image, enlarged by an integer factor until labels are legible."""
        factor = max(1, -(-LEGIBLE // min(self.image.shape[:2])))
        if factor == 1:
            return self.image.copy(), 1
        size = (self.image.shape[1] * factor, self.image.shape[0] * factor)
        return cv2.resize(self.image, size, interpolation=cv2.INTER_CUBIC), factor


@dataclass
class Boxes(Prediction):
    """Boxes, with masks if the model predicts them.

    Attributes:
        detections: supervision's ``Detections``, best first: ``xyxy`` in pixels, ``confidence``,
            ``class_id`` and ``mask``.
    """

    detections: sv.Detections

    def draw(self) -> np.ndarray:
        """Draw masks, boxes and labels, the best last, so on top; see ``Prediction.draw``."""
        canvas, factor = self._canvas()
        order = np.argsort(-self.detections.confidence, kind='stable')
        found = _enlarged(self.detections[order[::-1]], factor)
        if found.mask is not None:
            canvas = sv.MaskAnnotator(opacity=0.4).annotate(canvas, found)
        height, width = canvas.shape[:2]
        thickness = sv.calculate_optimal_line_thickness((width, height))
        canvas = sv.BoxAnnotator(thickness=thickness).annotate(canvas, found)
        labels = [
            f'{self.classes[index]} {score:.2f}'
            for index, score in zip(found.class_id, found.confidence)
        ]
        return _label_annotator(canvas).annotate(canvas, found, labels)

    def to_dict(self) -> dict[str, Any]:
        """Return boxes as ``[x1, y1, x2, y2]`` and masks as COCO's RLE, as mmdet writes them."""
        found = self.detections
        result = dict(
            labels=found.class_id.tolist(),
            classes=[self.classes[index] for index in found.class_id],
            scores=found.confidence.tolist(),
            bboxes=found.xyxy.tolist(),
        )
        if found.mask is not None:
            result['masks'] = [encode_mask(mask) for mask in found.mask]
        return result


@dataclass
class LabelMap(Prediction):
    """A class for every pixel.

    Attributes:
        label_map: Indices of classes ``(H, W)``.
    """

    label_map: np.ndarray

    def draw(self) -> np.ndarray:
        """Color the classes and name those that cover 1 % or more; see ``Prediction.draw``."""
        canvas, factor = self._canvas()
        found = _enlarged(self._regions(), factor)
        canvas = sv.MaskAnnotator(opacity=0.5).annotate(canvas, found)
        named = found[found.area >= 0.01 * found.mask[0].size]
        labels = [self.classes[index] for index in named.class_id]
        annotator = _label_annotator(canvas, sv.Position.CENTER)
        return annotator.annotate(canvas, named, labels)

    def to_dict(self) -> dict[str, Any]:
        """Return the share of each class; the map is saved as an image."""
        found, counts = np.unique(self.label_map, return_counts=True)
        return dict(
            classes=[self.classes[index] for index in found],
            labels=found.tolist(),
            shares=(counts / self.label_map.size).tolist(),
        )

    def _regions(self) -> sv.Detections:
        """Return one mask per class; its box is that of the class's largest connected part."""
        found = np.unique(self.label_map)
        masks = np.stack([self.label_map == index for index in found])
        boxes = np.array([_largest_part(mask) for mask in masks], dtype=float)
        return sv.Detections(xyxy=boxes, mask=masks, class_id=found.astype(int))


@dataclass
class ClassScores(Prediction):
    """Class scores of the image.

    Attributes:
        scores: Probabilities of all classes ``(number of classes,)``.
    """

    scores: np.ndarray

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the best classes.

        Args:
            count: Number of classes.

        Returns:
            Names and probabilities, best first.
        """
        order = np.argsort(-self.scores)[:count]
        return [(self.classes[index], float(self.scores[index])) for index in order]

    def draw(self) -> np.ndarray:
        """Write the three best classes onto the image; see ``Prediction.draw``."""
        canvas, _ = self._canvas()
        scale = _text_scale(canvas)
        line = round(50 * scale)
        for index, (name, score) in enumerate(self.top(3)):
            text = f'{name} {score:.2f}'
            (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
            center = sv.Point(width // 2 + line // 2, round(line * (index + 0.7)))
            sv.draw_text(
                canvas,
                text,
                center,
                text_color=sv.Color.WHITE,
                text_scale=scale,
                text_padding=round(12 * scale),
                background_color=sv.Color.BLACK,
            )
        return canvas

    def to_dict(self) -> dict[str, Any]:
        """Return the best class and the five best with their probabilities."""
        (name, score), *_ = top = self.top()
        return dict(
            label=int(np.argmax(self.scores)),
            class_name=name,
            score=score,
            top=[dict(class_name=other, score=value) for other, value in top],
        )


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Encode a mask as COCO RLE with text counts for JSON.

    Args:
        mask: Boolean ``(H, W)``.

    Returns:
        ``size`` and ``counts``.
    """
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(size=list(encoded['size']), counts=encoded['counts'].decode())


def _enlarged(detections: sv.Detections, factor: int) -> sv.Detections:
    """Scale boxes and masks to an enlarged image."""
    if factor == 1:
        return detections
    masks = detections.mask
    if masks is not None:
        masks = masks.repeat(factor, axis=1).repeat(factor, axis=2)
    return sv.Detections(
        xyxy=detections.xyxy * factor,
        mask=masks,
        confidence=detections.confidence,
        class_id=detections.class_id,
    )


def _largest_part(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the box ``x1, y1, x2, y2`` of a mask's largest connected part."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    x, y, width, height, _ = max(stats[1:], key=lambda part: part[cv2.CC_STAT_AREA])
    return x, y, x + width, y + height


def _text_scale(canvas: np.ndarray) -> float:
    height, width = canvas.shape[:2]
    return max(sv.calculate_optimal_text_scale((width, height)), 0.4)


def _label_annotator(
    canvas: np.ndarray, position: sv.Position = sv.Position.TOP_LEFT
) -> sv.LabelAnnotator:
    scale = _text_scale(canvas)
    return sv.LabelAnnotator(
        text_scale=scale, text_padding=max(round(8 * scale), 2), text_position=position
    )

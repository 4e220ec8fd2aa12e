# SPDX-License-Identifier: Apache-2.0
"""Contact sheet of annotated images of a COCO data set, for visual inspection."""

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from pycocotools.coco import COCO

PANEL_INCHES = 2.4


def draw_panel(axes: Axes, coco: COCO, image_id: int, image_dir: Path) -> None:
    """Draw one image with the box, the mask's outline and the class name of each instance.

    Args:
        axes: Axes to draw on.
        coco: Annotations, or predictions as ``COCO.loadRes`` makes them.
        image_id: Id of the image.
        image_dir: Folder of the images.
    """
    image = coco.imgs[image_id]
    axes.imshow(
        imread(image_dir / image['file_name']), extent=(0, image['width'], image['height'], 0)
    )
    colors = matplotlib.colormaps['tab10'].colors
    columns, rows = np.arange(image['width']) + 0.5, np.arange(image['height']) + 0.5
    for annotation in coco.imgToAnns[image_id]:
        color = colors[annotation['category_id'] % len(colors)]
        x, y, width, height = annotation['bbox']
        axes.contour(
            columns, rows, coco.annToMask(annotation), [0.5], colors='white', linewidths=0.7
        )
        axes.add_patch(
            Rectangle((x, y), width, height, fill=False, edgecolor=color, linewidth=1.2)
        )
        name = coco.cats[annotation['category_id']]['name']
        label = dict(facecolor=color, edgecolor='none', pad=0.8, alpha=0.85)
        axes.text(
            x, max(y, 8), name, fontsize=5.5, color='white', va='bottom', clip_on=True, bbox=label
        )
    axes.set(xlim=(0, image['width']), ylim=(image['height'], 0), xticks=[], yticks=[])


def save_contact_sheet(
    annotation_file: str | Path,
    image_dir: str | Path,
    path: str | Path,
    rows: int = 4,
    columns: int = 6,
) -> None:
    """Save a picture of the first images of a COCO set with boxes, mask outlines and names.

    Args:
        annotation_file: COCO instances json.
        image_dir: Folder of its images.
        path: Picture to write; its suffix determines the format.
        rows: Maximum number of rows of images.
        columns: Maximum number of images in a row.
    """
    with redirect_stdout(StringIO()):  # pycocotools reports its progress on stdout
        coco = COCO(str(annotation_file))
    image_ids = sorted(coco.imgs)[: rows * columns]
    columns = min(columns, len(image_ids))
    rows = -(-len(image_ids) // columns)
    figure = Figure((PANEL_INCHES * columns, PANEL_INCHES * rows), layout='constrained')
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(image_ids) :]:
        axes.remove()
    for axes, image_id in zip(grid.flat, image_ids):
        draw_panel(axes, coco, image_id, Path(image_dir))
    figure.savefig(path, dpi=150)

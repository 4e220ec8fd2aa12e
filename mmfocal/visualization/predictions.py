# SPDX-License-Identifier: Apache-2.0
"""Figures of predictions and ground truth."""

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from matplotlib.figure import Figure
from pycocotools.coco import COCO

from .contact_sheet import PANEL_INCHES, draw_panel


def save_predictions(
    annotation_file: str | Path,
    results_file: str | Path,
    image_dir: str | Path,
    path: str | Path,
    images: int = 6,
    score_thr: float = 0.5,
) -> None:
    """Save a picture with ground truth above and predictions below.

    Args:
        annotation_file: COCO instances json.
        results_file: ``*.segm.json``, as CocoMetric writes it with ``outfile_prefix``.
        image_dir: Folder of the images.
        path: Picture to write; its suffix determines the format.
        images: Number of images, the first ones of the set.
        score_thr: Minimum score of predictions.
    """
    results = json.loads(Path(results_file).read_text())
    confident = [result for result in results if result['score'] >= score_thr]
    with redirect_stdout(StringIO()):  # pycocotools reports its progress on stdout
        truth = COCO(str(annotation_file))
        predicted = truth.loadRes(confident) if confident else COCO()
    ids = sorted(truth.imgs)[:images]
    figure = Figure((PANEL_INCHES * len(ids), 2 * PANEL_INCHES), layout='constrained')
    grid = figure.subplots(2, len(ids), squeeze=False)
    predicted.imgs, predicted.cats = truth.imgs, truth.cats
    for row, coco in zip(grid, (truth, predicted), strict=True):
        for axes, image_id in zip(row, ids, strict=True):
            draw_panel(axes, coco, image_id, Path(image_dir))
    grid[0, 0].set_ylabel('ground truth')
    grid[1, 0].set_ylabel(f'predictions, score $\\geq$ {score_thr}')
    figure.savefig(path, dpi=150)

# SPDX-License-Identifier: Apache-2.0
"""Predict on pictures, folders, videos and cameras; needs supervision and the task's host."""

from .prediction import Boxes, ClassScores, LabelMap, Prediction
from .predictor import Predictor
from .run_folder import find_run
from .sources import Source, find_sources

__all__ = [
    'Boxes',
    'ClassScores',
    'LabelMap',
    'Prediction',
    'Predictor',
    'Source',
    'find_run',
    'find_sources',
]

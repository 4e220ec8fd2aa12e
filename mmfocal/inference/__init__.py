# SPDX-License-Identifier: Apache-2.0
"""Prediction on images, folders, videos and cameras; needs supervision and the host library."""

from mmfocal.environment import require

require('mmengine.config', 'supervision')

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

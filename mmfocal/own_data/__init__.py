# SPDX-License-Identifier: Apache-2.0
"""Configs for custom data: read the classes, write the differences from a shipped config."""

from .annotations import OwnData, Split, read_class_folders, read_coco, read_label_maps
from .compose import compose
from .conversion import FORMATS, to_coco
from .schedule import plan

__all__ = [
    'FORMATS',
    'OwnData',
    'Split',
    'compose',
    'plan',
    'read_class_folders',
    'read_coco',
    'read_label_maps',
    'to_coco',
]

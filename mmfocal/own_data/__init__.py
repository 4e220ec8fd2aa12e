# SPDX-License-Identifier: Apache-2.0
"""Configs for custom data: read the classes, write the differences from a shipped config."""

from .annotations import (
    OwnData,
    Split,
    has_hidden_folders,
    list_class_folders,
    read_class_folders,
    read_coco,
    read_label_maps,
)
from .compose import compose
from .conversion import FORMATS, share_categories, to_coco
from .schedule import plan

__all__ = [
    'FORMATS',
    'OwnData',
    'Split',
    'compose',
    'has_hidden_folders',
    'list_class_folders',
    'plan',
    'read_class_folders',
    'read_coco',
    'read_label_maps',
    'share_categories',
    'to_coco',
]

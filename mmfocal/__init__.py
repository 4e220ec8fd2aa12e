# SPDX-License-Identifier: Apache-2.0
"""Focal Transformer for the OpenMMLab family: importing this package registers the backbone."""

from mmengine.config.utils import MODULE2PACKAGE

from .models import FocalPretrained, FocalTransformer, SwinPretrained
from .version import __version__

# MMEngine resolves `_base_ = 'mmfocal::...'` only for the packages that it knows.
MODULE2PACKAGE.setdefault('mmfocal', 'mmfocal')

__all__ = ['FocalPretrained', 'FocalTransformer', 'SwinPretrained', '__version__']

# SPDX-License-Identifier: Apache-2.0
"""Focal Transformer for the OpenMMLab family: importing this package registers the backbone."""

from .environment import installed, require

require('mmengine.config', 'mmengine.model')  # what packages that do not fit together fail in

from mmengine.config.utils import MODULE2PACKAGE

from .models import FocalPretrained, FocalTransformer, SwinPretrained
from .version import __version__
from .zoo import config

# MMEngine resolves `_base_ = 'mmfocal::...'` only for the packages that it knows.
MODULE2PACKAGE.setdefault('mmfocal', 'mmfocal')
# It looks for a distribution, or else for a module: onedl's is not named after mmsegmentation.
if not installed('mmsegmentation'):
    MODULE2PACKAGE['mmseg'] = 'mmseg'

__all__ = ['FocalPretrained', 'FocalTransformer', 'SwinPretrained', '__version__', 'config']

# SPDX-License-Identifier: Apache-2.0
"""Focal Transformer for the OpenMMLab family: importing this package registers the backbone."""

from .environment import installed, require

require('mmengine.config', 'mmengine.model')  # imports that fail with incompatible packages

from mmengine.config.utils import MODULE2PACKAGE

from .models import FocalPretrained, FocalTransformer, SwinPretrained
from .version import __version__
from .zoo import config

# MMEngine resolves `_base_ = 'mmfocal::...'` only for registered packages.
MODULE2PACKAGE.setdefault('mmfocal', 'mmfocal')
# MMEngine looks up a distribution, then a module. The distribution of onedl's mmseg has another
# name, so the module is named here.
if not installed('mmsegmentation'):
    MODULE2PACKAGE['mmseg'] = 'mmseg'

__all__ = ['FocalPretrained', 'FocalTransformer', 'SwinPretrained', '__version__', 'config']

# SPDX-License-Identifier: Apache-2.0
"""Focal Transformer for the OpenMMLab family: importing this package registers the backbone."""

from .models import FocalTransformer
from .version import __version__

__all__ = ['FocalTransformer', '__version__']

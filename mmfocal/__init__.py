# SPDX-License-Identifier: Apache-2.0
"""Focal Transformer for the OpenMMLab family: importing this package registers the backbone."""

import logging

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import print_log

from .models import FocalPretrained, FocalTransformer, SwinPretrained
from .version import __version__
from .zoo import config

# MMEngine resolves `_base_ = 'mmfocal::...'` only for the packages that it knows.
MODULE2PACKAGE.setdefault('mmfocal', 'mmfocal')


class _MMEngineHandler(logging.Handler):
    """Show in a run's log what the operators, which know no MMEngine, log."""

    def emit(self, record: logging.LogRecord) -> None:
        print_log(record.getMessage(), logger='current', level=record.levelno)


logging.getLogger('mmfocal').setLevel(logging.INFO)
logging.getLogger('mmfocal').addHandler(_MMEngineHandler())

__all__ = ['FocalPretrained', 'FocalTransformer', 'SwinPretrained', '__version__', 'config']

# SPDX-License-Identifier: Apache-2.0
"""Focal self-attention: one public function with several equivalent backends."""

from .api import IMPLS, focal_attention
from .bias import FocalBias
from .geometry import FocalGeometry
from .inputs import FocalInputs

__all__ = ['IMPLS', 'FocalBias', 'FocalGeometry', 'FocalInputs', 'focal_attention']

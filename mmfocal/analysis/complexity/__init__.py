# SPDX-License-Identifier: Apache-2.0
"""Parameters and FLOPs of any config; FLOPs are multiply-accumulates, as in the field's tables.

Only what inference runs is counted: auxiliary heads have parameters, but no FLOPs.
"""

from .api import Complexity, ModuleComplexity, complexity
from .conventions import CONVENTIONS, Convention

__all__ = ['CONVENTIONS', 'Complexity', 'Convention', 'ModuleComplexity', 'complexity']

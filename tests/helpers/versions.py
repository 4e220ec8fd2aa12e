# SPDX-License-Identifier: Apache-2.0
"""Features that older releases of PyTorch and Triton lack, and the tests that need them."""

from fnmatch import fnmatch

import pytest
import torch

from mmfocal.compat import COMPILES_SINCE, VERSION
from mmfocal.ops.focal_attention.impl import triton

# Feature -> the release of PyTorch that has it, and names of tests.
FEATURES = {
    'compiling and exporting this model': (
        COMPILES_SINCE,
        ('test_compile*', 'test_exports*'),
    ),
    'one graph for maps of all sizes': ((2, 7), ('test_one_graph_serves*',)),
    'reading training checkpoints without unpickling': (
        (2, 6),
        ('test_training_checkpoint_needs_no_opt_in', 'test_look_ups_are_limited*'),
    ),
    'fused optimizers on CPUs': ((2, 4), ('test_changes_are_noticed[[]fused optimizer]',)),
    'torch.library.opcheck': ((2, 5), ('test_opcheck',)),
}
HALF_ON_CPUS = (2, 3)
HALF = ('test_autocast_trains*', 'test_half_precision*', 'test_bias_and_softmax_stay_fp32*')


def lacking(item: pytest.Item) -> str | None:
    """Name the feature that a test needs and this environment lacks."""
    for feature, (since, names) in FEATURES.items():
        if since > VERSION and any(fnmatch(item.name, name) for name in names):
            return f'{feature} needs PyTorch {since[0]}.{since[1]}'
    params = getattr(item, 'callspec', None) and item.callspec.params.values()
    is_half = torch.float16 in (params or ()) and any(fnmatch(item.name, name) for name in HALF)
    if is_half and VERSION < HALF_ON_CPUS:
        return 'float16 on CPUs needs PyTorch {}.{}'.format(*HALF_ON_CPUS)
    needs_triton = item.path.name.startswith(('test_triton', 'test_launches'))
    if needs_triton and triton.IS_TOO_OLD:
        return f'the kernels need Triton {triton.MIN_VERSION}'
    return None

# SPDX-License-Identifier: Apache-2.0
"""Conventions of counting FLOPs in published tables.

Papers count different operations, so the operations are counted by kind:

    linear        convolutions and linear layers
    coarse_kv     linear layers: keys and values of focal attention's pooled tokens
    coarse_q      linear layers: queries of pooled tokens, which the released code does not use
    gathered_qkv  linear layers: queries, keys and values of pooled tokens if these were projected
                  after gathering them for each window
    attention     both products of window and focal attention, each token once per window
    repeated      both products for the tokens that focal attention gathers twice
    product       any other product of two activations
    deform        deformable convolutions without their interpolation
    norm          normalization, one per element

``coarse_q`` and ``gathered_qkv`` are computed by other implementations, not by this package.
"""

from typing import NamedTuple

Shape = tuple[int, int]


class Convention(NamedTuple):
    """Convention by which a table counts FLOPs.

    Attributes:
        kinds: Kinds of operations that are summed.
        meaning: Description of the kinds.
        source: Published numbers that follow the convention.
        shape: Default height and width; None for those of the config.
    """

    kinds: frozenset[str]
    meaning: str
    source: str
    shape: Shape | None = None


def _kinds(names: str) -> frozenset[str]:
    return frozenset(names.split())


CONVENTIONS = {
    'default': Convention(
        _kinds('linear coarse_kv attention repeated product deform'),
        'every convolution, linear layer and matrix product that is computed',
        'no published table',
    ),
    'linear': Convention(
        _kinds('linear coarse_kv'),
        'convolutions and linear layers only',
        "the Swin rows of the paper's RetinaNet and Mask R-CNN tables",
    ),
    'matmul-120': Convention(
        _kinds('linear coarse_kv attention'),
        'linear, and attention with each neighbor once (120 keys for window 7)',
        "the paper's RetinaNet; nearest for the other detectors; Swin's own tables",
    ),
    'matmul-132': Convention(
        _kinds('linear coarse_kv attention repeated'),
        'linear, and attention with neighbors as gathered (132 keys for window 7)',
        'the attention that is computed',
    ),
    'classification': Convention(
        _kinds('linear coarse_kv coarse_q attention norm'),
        'matmul-120, with norms, and with queries of pooled tokens',
        "the paper's ImageNet tables: the released code's own flops()",
    ),
    'upernet-swin': Convention(
        _kinds('linear coarse_kv attention norm'),
        'matmul-120, with norms',
        "Swin's rows of the UperNet table",
    ),
    'upernet-focal': Convention(
        _kinds('linear gathered_qkv'),
        'linear, with pooled tokens projected to q, k and v after gathering them for each window',
        "the paper's Focal-T, S and B rows of the UperNet table",
    ),
    'reppointsv2': Convention(
        _kinds('linear coarse_kv attention deform'),
        'matmul-120, with deformable convolutions, on a square image',
        "the released README's RepPointsV2 row",
        (1280, 1280),
    ),
}


def find_convention(name: str) -> Convention:
    """Return a convention by name.

    Args:
        name: A key of :data:`CONVENTIONS`.

    Raises:
        ValueError: If there is no such convention.
    """
    if name not in CONVENTIONS:
        raise ValueError(f'convention must be one of {", ".join(CONVENTIONS)}, got {name!r}')
    return CONVENTIONS[name]

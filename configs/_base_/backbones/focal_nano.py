# SPDX-License-Identifier: Apache-2.0
"""A Focal Transformer that a laptop trains in minutes."""

backbone = dict(
    type='FocalTransformer',
    arch=dict(embed_dims=32, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8)),
    # at 160 pixels the maps have 40, 20, 10 and 5 rows: 6, 3, 2 and 1 coarse cells
    focal_windows=(7, 5, 3, 1),
    expand_sizes=(3, 3, 3, 0),
    drop_path_rate=0.0,  # nothing to regularize in so few epochs
)

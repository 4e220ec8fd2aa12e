# SPDX-License-Identifier: Apache-2.0
"""Views for ``tools/test.py --tta``: three sizes around the test scale, each also mirrored."""

# choice: neither the paper nor earlier work specifies views for these detectors
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=(1333 * short // 800, short), keep_ratio=True)
                for short in (640, 800, 960)
            ],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [
                dict(
                    type='PackDetInputs',
                    meta_keys=(
                        *('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
                        *('flip', 'flip_direction'),
                    ),
                )
            ],
        ],
    ),
]

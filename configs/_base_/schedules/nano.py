# SPDX-License-Identifier: Apache-2.0
"""AdamW with warm-up and cosine for minutes on 2 CPU cores; lengths follow from ``max_iters``."""

max_iters = 1300
warmup = 100

optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warmup),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=warmup, end=max_iters),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 2)
# For configs whose steps take twice as long. They cannot be a second base file, because the bases
# of a config must not share keys.
half_as_long = dict(
    param_scheduler=[param_scheduler[0], dict(param_scheduler[1], end=max_iters // 2)],
    train_cfg=dict(max_iters=max_iters // 2, val_interval=max_iters // 4),
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=8)

# For default_hooks, which only one base may define. Two checkpoints are kept, because MMEngine
# deletes the older one before it writes the newer one.
frequent_hooks = dict(
    logger=dict(type='LoggerHook', interval=20, log_metric_by_epoch=False),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=100, max_keep_ckpts=2),
)

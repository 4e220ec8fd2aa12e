# SPDX-License-Identifier: Apache-2.0
# Restated: `mmseg::` inheritance fails with the renamed distribution onedl-mmsegmentation.
default_scope = 'mmseg'
custom_imports = dict(imports=['mmfocal'], allow_failed_imports=False)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=16000),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
# Further log backends, one line each; need `pip install "mmfocal[track]"`:
# visualizer = dict(vis_backends=[*_base_.vis_backends, dict(type='TensorboardVisBackend')])
# visualizer = dict(vis_backends=[*_base_.vis_backends, dict(type='WandbVisBackend')])
# visualizer = dict(vis_backends=[*_base_.vis_backends, dict(type='MLflowVisBackend')])
# choice: a fixed seed, so that runs are reproducible; seed=None draws a seed. Ranks draw different
# random numbers (drop path, Mixup), as in the released training.
randomness = dict(seed=0, diff_rank_seed=True)
log_processor = dict(by_epoch=False)
log_level = 'INFO'
load_from = None
resume = False
tta_model = dict(type='SegTTAModel')

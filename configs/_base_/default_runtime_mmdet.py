# SPDX-License-Identifier: Apache-2.0
_base_ = 'mmdet::_base_/default_runtime.py'

custom_imports = dict(imports=['mmfocal', 'mmfocal.detection'], allow_failed_imports=False)
# choice: a fixed seed, so that runs are reproducible; seed=None draws a seed. Ranks draw different
# random numbers (drop path, Mixup), as in the released training.
randomness = dict(seed=0, diff_rank_seed=True)

# Further log backends, one line each; need `pip install "mmfocal[track]"`:
# visualizer = dict(vis_backends=[*_base_.vis_backends, dict(type='TensorboardVisBackend')])
# visualizer = dict(vis_backends=[*_base_.vis_backends, dict(type='WandbVisBackend')])
# visualizer = dict(vis_backends=[*_base_.vis_backends, dict(type='MLflowVisBackend')])

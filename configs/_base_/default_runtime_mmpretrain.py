# SPDX-License-Identifier: Apache-2.0
_base_ = 'mmpretrain::_base_/default_runtime.py'

# Restated: mmpretrain's browse_dataset fails on the `_scope_` of an inherited visualizer.
visualizer = dict(
    _delete_=True, type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')]
)
custom_imports = dict(imports=['mmfocal'], allow_failed_imports=False)
# choice: a fixed seed, so that runs are reproducible; seed=None draws a seed. Ranks draw different
# random numbers (drop path, Mixup), as in the released training.
randomness = dict(seed=0, diff_rank_seed=True)

# Further log backends, one line each; need `pip install "mmfocal[track]"`:
# visualizer = dict(vis_backends=[*_base_.vis_backends, dict(type='TensorboardVisBackend')])
# visualizer = dict(vis_backends=[*_base_.vis_backends, dict(type='WandbVisBackend')])
# visualizer = dict(vis_backends=[*_base_.vis_backends, dict(type='MLflowVisBackend')])

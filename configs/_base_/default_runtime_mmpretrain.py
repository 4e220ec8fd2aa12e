# SPDX-License-Identifier: Apache-2.0
_base_ = 'mmpretrain::_base_/default_runtime.py'

randomness = dict(seed=0)  # choice: runs repeat; seed=None draws one
# Restated: mmpretrain's browse_dataset cannot take the mark that an inherited one carries.
visualizer = dict(
    _delete_=True, type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')]
)

# Further log back ends, one line each:
# visualizer = dict(vis_backends=[*_base_.vis_backends, dict(type='TensorboardVisBackend')])
# visualizer = dict(vis_backends=[*_base_.vis_backends, dict(type='WandbVisBackend')])

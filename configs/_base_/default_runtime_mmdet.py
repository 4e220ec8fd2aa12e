# SPDX-License-Identifier: Apache-2.0
_base_ = 'mmdet::_base_/default_runtime.py'

randomness = dict(seed=0)  # choice: runs repeat; seed=None draws one

# Further log back ends, one line each:
# visualizer = dict(vis_backends=[*_base_.vis_backends, dict(type='TensorboardVisBackend')])
# visualizer = dict(vis_backends=[*_base_.vis_backends, dict(type='WandbVisBackend')])

# SPDX-License-Identifier: Apache-2.0
_base_ = 'mmdet::_base_/default_runtime.py'

# Further log back ends, one line each:
# vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
# vis_backends = [dict(type='LocalVisBackend'), dict(type='WandbVisBackend')]
# visualizer = dict(vis_backends=vis_backends)

# SPDX-License-Identifier: Apache-2.0
"""What testing adds to a config."""

import pytest
from mmengine.config import Config

from mmfocal.engine.evaluate import use_tta


@pytest.mark.parametrize(
    ('scope', 'message'),
    [
        ('mmdet', "needs 'tta_model' in the config, .*DetTTAModel merges boxes only"),
        ('mmseg', "needs 'tta_model' in the config, which has none$"),
    ],
)
def test_missing_test_time_augmentation_is_explained(scope, message):
    with pytest.raises(ValueError, match=message):
        use_tta(Config(dict(default_scope=scope, model=dict(type='MaskRCNN'))))


def test_classification_does_not_draw_several_views():
    hook = dict(type='VisualizationHook', enable=True)
    cfg = Config(dict(default_scope='mmpretrain', default_hooks=dict(visualization=hook)))
    with pytest.raises(ValueError, match='omit --show and --show-dir'):
        use_tta(cfg)

# SPDX-License-Identifier: Apache-2.0
"""The comparison of precisions trains a detector in each."""

import re
import subprocess
import sys

import pytest

OPTIONS = [
    'train_cfg.max_iters=4',
    'train_cfg.val_interval=4',
    'train_dataloader.batch_size=1',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'val_dataloader.dataset.indices=4',
    'default_hooks.logger.interval=1',
]


@pytest.mark.slow
def test_precisions_are_compared(workspace, repo_root, environment):
    """Losses agree within the rounding of four steps, but are not equal: the precision differs."""
    config = str(repo_root / 'configs' / 'quickstart' / 'focal_nano_maskrcnn.py')
    done = subprocess.run(
        [sys.executable, str(repo_root / 'tools' / 'dev' / 'mixed_precision.py'),
         '--config', config, '--cfg-options', *OPTIONS],
        cwd=workspace, env=environment, text=True, capture_output=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, f'{done.stdout[-2000:]}\n{done.stderr[-3000:]}'
    rows = re.findall(r'^\| (\w+) \|((?: [\d.]+ \|){4}).*\(coco/bbox_mAP, ', done.stdout, re.M)
    losses = {dtype: [float(loss) for loss in row.split('|')[:4]] for dtype, row in rows}
    assert set(losses) == {'float32', 'bfloat16', 'float16'}, done.stdout[-2000:]
    for dtype, rounding in (('bfloat16', 2**-8), ('float16', 2**-11)):
        # of some ten layers, in the first step
        assert losses[dtype][0] == pytest.approx(losses['float32'][0], rel=10 * rounding), losses
        assert losses[dtype] != losses['float32']

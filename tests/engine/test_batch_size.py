# SPDX-License-Identifier: Apache-2.0
"""Messages about a batch that the learning rate was not chosen for."""

import pytest
from mmengine.config import Config

from mmfocal.engine import describe_batch_size


def make(images: int = 2, enable: bool = False, **wrapper: int) -> Config:
    return Config(
        dict(
            train_dataloader=dict(batch_size=images),
            optim_wrapper=dict(optimizer=dict(lr=1e-4), **wrapper),
            auto_scale_lr=dict(base_batch_size=16, enable=enable),
        )
    )


@pytest.mark.parametrize(
    ('cfg', 'processes', 'line'),
    [
        (
            make(),
            1,
            'The total batch is 2 (1 x 2); the learning rate is set for 16. '
            '--auto-scale-lr is not given: 0.0001 as configured instead of 1.25e-05.',
        ),
        (
            make(enable=True),
            4,
            'The total batch is 8 (4 x 2); the learning rate is set for 16. '
            '--auto-scale-lr is given: 5e-05 instead of 0.0001.',
        ),
        (
            make(accumulative_counts=4),
            1,
            'The total batch is 8 (1 x 2 x 4 accumulated); the learning rate is set for 16. '
            '--auto-scale-lr is not given: 0.0001 as configured instead of 5e-05.',
        ),
        (make(), 8, None),
        (make(accumulative_counts=8), 1, None),
        (Config(dict(train_dataloader=dict(batch_size=2))), 1, None),
    ],
)
def test_both_learning_rates_are_named(cfg: Config, processes: int, line: str | None) -> None:
    assert describe_batch_size(cfg, processes) == line

# SPDX-License-Identifier: Apache-2.0
"""Random numbers that depend on seed, rank and position in the training, not on its history.

A resumed training draws the same numbers as an uninterrupted one, without generator states in
checkpoints: the generators are seeded for each iteration and each sample. The numbers do not
depend on the number of data workers either.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader, Dataset, Sampler

_ITERATION, _SAMPLE = 0, 1  # distinct streams


def seed_all(*place: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators.

    Args:
        *place: Non-negative integers; different ones give independent random numbers.
    """
    words = np.random.SeedSequence(place).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed(int(words[2]) << 32 | int(words[3]))


class RandomNumbers(Hook):
    """Seed each iteration and each sample by its position in the training."""

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Number the samples from the current iteration on.

        Args:
            runner: The runner, resumed.
        """
        differ = runner.cfg.get('randomness', {}).get('diff_rank_seed', True)
        self.stream = (abs(int(runner.seed)), get_rank() if differ else 0)
        _number_samples(runner, self.stream)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the random numbers of the step, e.g. of drop path, sampled regions and Mixup.

        Args:
            runner: The runner.
            batch_idx: Not used.
            data_batch: Not used.
        """
        seed_all(_ITERATION, *self.stream, runner.iter)


class Numbered(int):
    """Index of a sample with its position in the training."""

    place: tuple[int, ...]


class NumberedSampler(Sampler):
    """Add the position in the training to each index.

    Args:
        sampler: Any sampler. Its attributes are forwarded.
        start: Position of its first index.
        skipped: Number of indices that the first pass skips.
    """

    def __init__(self, sampler: Sampler, start: int = 0, skipped: int = 0) -> None:
        self.sampler = sampler
        self.start = start
        self.skipped = skipped

    def __iter__(self) -> Iterator[Numbered]:
        endless = isinstance(self.sampler, InfiniteSampler)
        number, skipped, self.skipped = self.start + self.skipped, self.skipped, 0
        for index in islice(iter(self.sampler), skipped, None):
            numbered = Numbered(index)
            numbered.place = (getattr(self.sampler, 'epoch', 0), number)
            number += 1
            if endless:  # the next pass continues the numbering
                self.start = number
            yield numbered

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        if name == 'sampler':  # during unpickling
            raise AttributeError(name)
        return getattr(self.sampler, name)


class SeededSamples:
    """Load samples of a data set, each with its own random numbers.

    Args:
        dataset: Any data set.
        stream: Seed and rank.
    """

    def __init__(self, dataset: Dataset, stream: tuple[int, ...]) -> None:
        self.dataset = dataset
        self.stream = stream

    def __call__(self, indices: Sequence[int]) -> list:
        """Load a batch.

        Args:
            indices: Indices of ``NumberedSampler``. Samples of other indices are not seeded.
        """
        samples = []
        for index in indices:
            if isinstance(index, Numbered):
                seed_all(_SAMPLE, *self.stream, *index.place)
            samples.append(self.dataset[int(index)])
        return samples


def _number_samples(runner: Runner, stream: tuple[int, ...]) -> None:
    """Number the samples of a loader; PyTorch calls ``__getitems__`` for whole batches."""
    loader: DataLoader = runner.train_dataloader
    sampler = getattr(loader.batch_sampler, 'sampler', None)
    if sampler is None or getattr(loader.dataset, '__getitems__', None):
        return
    start = skipped = 0
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        # the checkpoint was saved within an epoch, so the first samples of the epoch are done
        done = runner.iter - runner.epoch * len(loader)
        skipped = max(0, done) * (loader.batch_size or 1)
    elif hasattr(sampler, 'skip') and not getattr(
        runner.train_loop, 'fast_forward_on_resume', False
    ):
        start = runner.iter * (loader.batch_size or 1)  # the loop skips as many samples
    loader.batch_sampler.sampler = NumberedSampler(sampler, start, skipped)
    loader.dataset.__getitems__ = SeededSamples(loader.dataset, stream)

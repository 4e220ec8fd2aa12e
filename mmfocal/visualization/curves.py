# SPDX-License-Identifier: Apache-2.0
"""Curves of loss and metrics of runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from mmfocal.analysis.run_log import RunLog


def save_curves(logs: Mapping[str, RunLog], metrics: Sequence[str], path: str | Path) -> None:
    """Save a picture of the loss (left) and of validation metrics (right) of one or more runs.

    Args:
        logs: Runs by the name that the legend shows.
        metrics: Keys of validation metrics; those that no run has are left out.
        path: Picture to write; its suffix determines the format.
    """
    figure = Figure((10, 4), layout='constrained')
    loss_axes, metric_axes = figure.subplots(1, 2)
    for index, (name, log) in enumerate(logs.items()):
        steps = sorted(log.train)
        losses = [log.train[step]['loss'] for step in steps]
        loss_axes.plot(steps, losses, color=f'C{index}', label=name)
        for metric, style in zip(metrics, ('-o', '--s', ':^', '-.v'), strict=False):
            points = [
                (step, log.val[step][metric])
                for step in sorted(log.val)
                if metric in log.val[step]
            ]
            if points:
                label = f'{name}: {metric.split("/")[-1]}'
                metric_axes.plot(*zip(*points, strict=True), style, color=f'C{index}', label=label)
    loss_axes.set(xlabel='iteration', ylabel='training loss', yscale='log')
    metric_axes.set(xlabel='iteration', ylabel='validation', xlim=(0, None))
    for axes in (loss_axes, metric_axes):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)

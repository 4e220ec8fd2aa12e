# SPDX-License-Identifier: Apache-2.0
"""Plot the learning rates of all shipped schedules; write docs/schedules.md and its figure."""

import argparse
import math
import textwrap
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmengine.config import Config

from mmfocal.engine import read_config
from tools.dev.model_zoo.paper import read_paper
from tools.dev.model_zoo.schedule import Schedule, group_schedules, schedules_page

ROOT = Path(__file__).resolve().parents[3]
COLUMNS = 4
FOLDERS = ('classification', 'detection', 'segmentation')


def read_configs() -> dict[str, Config]:
    """Read every config of the paper's tasks, by name."""
    paths = [path for folder in FOLDERS for path in (ROOT / 'configs' / folder).rglob('*.py')]
    return {path.stem: read_config(path) for path in sorted(paths) if 'overfit' not in path.stem}


def draw(axes: Axes, schedule: Schedule) -> None:
    """Draw a schedule, and its warm-up once more in an inset if it is short."""
    methods = textwrap.fill(', '.join(schedule.methods), 52)
    axes.plot(schedule.rates)
    axes.set(xlabel='iteration', ylabel='learning rate', ylim=(0, None))
    axes.set_title(schedule.title, fontsize=11, fontweight='bold')
    axes.text(0.5, -0.32, methods, fontsize=8, ha='center', va='top', transform=axes.transAxes)
    axes.ticklabel_format(axis='y', scilimits=(0, 0))
    axes.xaxis.set_major_formatter(lambda value, _: f'{value / 1000:g}k')
    axes.grid(alpha=0.3)
    warmup = schedule.rates.index(max(schedule.rates))
    if warmup < 0.03 * len(schedule.rates):
        inset = axes.inset_axes((0.13, 0.13, 0.35, 0.35))
        inset.plot(schedule.rates[: 2 * warmup])
        inset.tick_params(labelsize=7)
        inset.set_yticks([])


def main() -> None:
    """Write page and picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=ROOT / 'docs', help='folder to write (docs)')
    out = parser.parse_args().out
    schedules = group_schedules(read_configs(), read_paper().method_names)
    rows = math.ceil(len(schedules) / COLUMNS)
    figure = Figure((3.6 * COLUMNS, 3.6 * rows), layout='constrained')
    for axes, schedule in zip(figure.subplots(rows, COLUMNS).flat, schedules, strict=False):
        draw(axes, schedule)
    (out / 'images').mkdir(parents=True, exist_ok=True)
    figure.savefig(out / 'images' / 'schedules.png', dpi=90)
    (out / 'schedules.md').write_text(schedules_page(schedules))
    print(f'wrote {out / "schedules.md"} and {out / "images" / "schedules.png"}')


if __name__ == '__main__':
    main()

# SPDX-License-Identifier: Apache-2.0
"""Published numbers and those of this project.

``paper.yml`` contains the printed numbers. This project's parameters and FLOPs are computed from
the configs for each table, its scores are read from the logs of runs, and ``results.yml`` contains
scores that were published before.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import yaml
from mmengine.config import Config

from mmfocal.analysis.complexity import CONVENTIONS, Complexity, complexity
from mmfocal.analysis.run_log import read_run_log, read_tests
from mmfocal.engine import read_config

PAPER_FILE = Path(__file__).with_name('paper.yml')
RESULTS_FILE = Path(__file__).with_name('results.yml')
COMPUTED = ('params', 'flops')  # columns that this project computes


class Score(NamedTuple):
    """A kind of score: heading, key in logs, and factor to percent."""

    label: str
    log_key: str | None = None
    factor: float = 1.0
    is_multi_scale: bool = False


SCORES = {
    'top1': Score('top-1', 'accuracy/top1'),
    'top5': Score('top-5', 'accuracy/top5'),
    'box': Score('box AP', 'coco/bbox_mAP', 100.0),
    'mask': Score('mask AP', 'coco/segm_mAP', 100.0),
    'box50': Score('box AP50', 'coco/bbox_mAP_50', 100.0),
    'box75': Score('box AP75', 'coco/bbox_mAP_75', 100.0),
    'mask50': Score('mask AP50', 'coco/segm_mAP_50', 100.0),
    'mask75': Score('mask AP75', 'coco/segm_mAP_75', 100.0),
    'box_small': Score('box AP small', 'coco/bbox_mAP_s', 100.0),
    'box_medium': Score('box AP medium', 'coco/bbox_mAP_m', 100.0),
    'box_large': Score('box AP large', 'coco/bbox_mAP_l', 100.0),
    'box_testdev': Score('box AP test-dev'),
    'mask_testdev': Score('mask AP test-dev'),
    'box_ms': Score('box AP multi-scale', 'coco/bbox_mAP', 100.0, True),
    'mask_ms': Score('mask AP multi-scale', 'coco/segm_mAP', 100.0, True),
    'box_ms_testdev': Score('box AP multi-scale test-dev'),
    'mask_ms_testdev': Score('mask AP multi-scale test-dev'),
    'miou': Score('mIoU', 'mIoU'),
    'miou_ms': Score('mIoU multi-scale', 'mIoU', is_multi_scale=True),
    'speed224': Score('images/s at 224'),
    'speed448': Score('images/s at 448'),
    'speed896': Score('images/s at 896'),
}


@dataclass(frozen=True)
class Method:
    """Method that a config trains.

    Attributes:
        name: Name in tables and metafiles.
        paper: Its ``url`` and ``title``.
        data: Data set.
        readme: File whose tables hold the method's configs, from the project's root.
        shape: Height and width that FLOPs are counted at.
        convention: Convention of counting FLOPs; a key of ``CONVENTIONS``.
        scores: Keys of :data:`SCORES` that a run yields.
    """

    name: str
    paper: Mapping[str, str]
    data: str
    readme: str
    shape: tuple[int, int]
    convention: str
    scores: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One printed row, or a config without a printed row.

    Attributes:
        name: The row's name.
        method: What is trained.
        config: Path below ``configs/``; None if there is none.
        data: Data set.
        shape: Height and width that FLOPs are counted at.
        convention: Convention of counting FLOPs; a key of ``CONVENTIONS``.
        params: Printed parameters in millions.
        flops: Printed multiply-accumulates in units of 10^9.
        scores: Printed scores by key of :data:`SCORES`.
        also: Numbers in another version of the source, by column or score.
        measured: Keys of :data:`SCORES` that a run yields; by default the method's.
        differs: Notes by column on differences from printed parameters or FLOPs.
        notes: Further notes.
    """

    name: str
    method: Method
    config: str | None
    data: str
    shape: tuple[int, int]
    convention: str
    params: float | None = None
    flops: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    also: Mapping[str, float] = field(default_factory=dict)
    measured: tuple[str, ...] = ()
    differs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def all_notes(self) -> tuple[str, ...]:
        """Notes of the row without duplicates."""
        notes = (*(note for column in self.differs.values() for note in column), *self.notes)
        return tuple(dict.fromkeys(notes))


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper or the README; ``scores`` are its columns."""

    title: str
    source: str
    scores: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Paper:
    """Content of ``paper.yml``."""

    paper: Mapping[str, str]
    methods: Mapping[str, Method]
    tables: tuple[PaperTable, ...]

    @property
    def rows(self) -> list[Row]:
        """First row of each config."""
        first: dict[str, Row] = {}
        for table in self.tables:
            for row in table.rows:
                if row.config:
                    first.setdefault(row.config, row)
        return list(first.values())

    @property
    def method_names(self) -> dict[str, str]:
        """Name of each config's method, by the config's name."""
        return {PurePosixPath(row.config).stem: row.method.name for row in self.rows}


def _check_keys(found: Iterable[str], known: Iterable[str], what: str) -> None:
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise ValueError(f'{what} must be one of {", ".join(known)}, got {unknown[0]!r}')


def _texts(keys: Iterable[str], notes: Mapping[str, str]) -> tuple[str, ...]:
    _check_keys(keys, notes, 'note')
    return tuple(notes[key] for key in keys)


def _make_row(settings: dict, methods: Mapping[str, Method], notes: Mapping[str, str]) -> Row:
    if 'method' not in settings:
        raise ValueError(f"'method' is missing: one of {', '.join(methods)}")
    _check_keys([settings['method']], methods, 'method')
    method = methods[settings['method']]
    row = dict(data=method.data, shape=method.shape, convention=method.convention)
    row.update(settings, method=method, shape=tuple(settings.get('shape', method.shape)))
    _check_keys(row, Row.__dataclass_fields__, 'key')
    _check_keys(row.get('scores', ()), SCORES, 'score')
    _check_keys(row.get('also', ()), (*COMPUTED, *row.get('scores', ())), 'column or score')
    _check_keys(row.get('measured', ()), SCORES, 'score')
    _check_keys(row.get('differs', ()), COMPUTED, 'column')
    _check_keys([row['convention']], CONVENTIONS, 'convention')
    if 'config' not in row:
        raise ValueError("'config' is missing: a path below configs/, or null")
    measured = row.get('measured', method.scores)
    row['measured'] = tuple(key for key in method.scores if key in measured)
    row['differs'] = {
        column: _texts(keys, notes) for column, keys in settings.get('differs', {}).items()
    }
    row['notes'] = _texts(settings.get('notes', ()), notes)
    return Row(**row)


def _check_counting(paper: Paper, path: str | Path) -> None:
    """Check that rows of one config share its computed columns."""
    first = {row.config: row for row in paper.rows}
    for row in (row for table in paper.tables for row in table.rows if row.config):
        other = first[row.config]
        if (row.shape, row.convention) != (other.shape, other.convention):
            raise ValueError(
                f'{path}: {row.config}: rows {other.name!r} and {row.name!r} count FLOPs '
                'differently (shape or convention)'
            )


def read_paper(path: str | Path = PAPER_FILE) -> Paper:
    """Read the printed numbers.

    Args:
        path: YAML file in the format that the head of ``paper.yml`` describes.

    Returns:
        Tables with their rows.

    Raises:
        ValueError: If a row has an unknown key, method, column, note, score or convention, or if
            two rows count the FLOPs of a config differently.
    """
    content = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    methods = {
        key: Method(**{**method, 'shape': tuple(method['shape'])})
        for key, method in content['methods'].items()
    }
    tables = []
    for table in content['tables']:
        rows = []
        for row in table['rows']:
            settings = {**table.get('defaults', {}), **row}
            try:
                rows.append(_make_row(settings, methods, content['notes']))
            except ValueError as error:
                place = f'{path}: table {table["title"]!r}, row {row.get("name")!r}'
                raise ValueError(f'{place}: {error}') from None
        tables.append(
            PaperTable(table['title'], table['source'], tuple(table['scores']), tuple(rows))
        )
    paper = Paper(content['paper'], methods, tuple(tables))
    _check_counting(paper, path)
    return paper


class Ours(NamedTuple):
    """Computed columns of a config.

    Attributes:
        params: Trainable parameters.
        flops: Multiply-accumulates, counted as the row says.
        unit: ``Epochs`` or ``Iterations``.
        length: Number of epochs or iterations of a run.
        batch_size: Images per step, over all GPUs.
    """

    params: int
    flops: int
    unit: str
    length: int
    batch_size: int


def _length(cfg: Config) -> tuple[str, int]:
    by_epoch = cfg.train_cfg.get('max_epochs')
    return ('Epochs', by_epoch) if by_epoch else ('Iterations', cfg.train_cfg.max_iters)


def compute(rows: Iterable[Row], configs: Path) -> dict[str, Ours]:
    """Compute parameters and FLOPs; equal models are built once.

    Args:
        rows: Rows; those without an existing config are skipped.
        configs: The folder ``configs/``.

    Returns:
        Computed columns of each config, by its path below ``configs``.
    """
    ours: dict[str, Ours] = {}
    built: dict[tuple[str, tuple[int, int]], Complexity] = {}
    for row in rows:
        if row.config is None or not (configs / row.config).exists():
            continue
        cfg = read_config(configs / row.config)
        key = (repr(cfg.model), row.shape)
        if key not in built:
            built[key] = complexity(cfg, row.shape)
        flops = int(built[key].flops(row.convention))
        unit, length = _length(cfg)
        length *= cfg.train_dataloader.dataset.get('times', 1)  # of a RepeatDataset
        batch_size = cfg.auto_scale_lr.base_batch_size
        ours[row.config] = Ours(built[key].params, flops, unit, length, batch_size)
    return ours


def read_results(path: str | Path = RESULTS_FILE) -> dict[str, dict[str, str]]:
    """Read the published scores of this project's runs.

    Args:
        path: YAML file: scores by name of a config and key of :data:`SCORES`.

    Returns:
        Cells by name of the config and key of :data:`SCORES`.

    Raises:
        ValueError: If a score has an unknown key.
    """
    results = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    for name, scores in results.items():
        _check_keys(scores, SCORES, f'{path}: {name}: score')
    return {
        name: {key: f'{value:.1f}' for key, value in scores.items()}
        for name, scores in results.items()
    }


def _config_of(work_dir: Path) -> Path:
    """Return the newest config that MMEngine wrote to a work directory, under its own name."""
    files = sorted(work_dir.glob('*.py'), key=lambda path: path.stat().st_mtime)
    if not files:
        raise FileNotFoundError(f'{work_dir} holds no config (*.py) of a run')
    return files[-1]


def _validation(work_dir: Path) -> tuple[dict[str, float], str]:
    """Return the last validation, and the progress of the run if it is unfinished."""
    val = read_run_log(work_dir).val
    if not val:
        return {}, ''
    step = max(val)
    newest = max(work_dir.glob('*/vis_data/scalars.json'))
    cfg = Config.fromfile(newest.with_name('config.py'), import_custom_modules=False)
    unit, length = _length(cfg)
    state = '' if step >= length else f' ({unit.lower()[:-1]} {step} of {length})'
    return val[step], state


def _cells(metrics: Mapping[str, float], is_multi_scale: bool, state: str = '') -> dict[str, str]:
    return {
        key: f'{metrics[score.log_key] * score.factor:.1f}{state}'
        for key, score in SCORES.items()
        if score.log_key in metrics and score.is_multi_scale == is_multi_scale
    }


def read_scores(work_dirs: Iterable[str | Path]) -> dict[str, dict[str, str]]:
    """Read the scores of runs.

    Args:
        work_dirs: Work directories of ``tools/train.py`` and ``tools/test.py``.

    Returns:
        Cells by name of the config and key of :data:`SCORES`: those of the newest test, else those
        of the last validation, with the progress of an unfinished run.

    Raises:
        FileNotFoundError: If a folder contains no log or no config of a run.
        ValueError: If two folders are of the same config.
    """
    scores: dict[str, dict[str, str]] = {}
    origins: dict[str, Path] = {}
    for work_dir in map(Path, work_dirs):
        name = _config_of(work_dir).stem
        if name in origins:
            raise ValueError(f'{origins[name]} and {work_dir} are both runs of {name}')
        origins[name] = work_dir
        tests = read_tests(work_dir)
        scores[name] = {}
        if not tests or list(work_dir.glob('*/vis_data/scalars.json')):
            metrics, state = _validation(work_dir)
            scores[name].update(_cells(metrics, False, state))
        for metrics, is_multi_scale in tests:
            scores[name].update(_cells(metrics, is_multi_scale))
    return scores

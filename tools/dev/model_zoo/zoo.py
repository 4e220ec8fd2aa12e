# SPDX-License-Identifier: Apache-2.0
"""Generated files of the configs: page of tables, tables in READMEs, metafiles, index."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import yaml

from mmfocal.analysis.complexity import CONVENTIONS
from tools.dev.model_zoo.pages import (
    Cell,
    Grid,
    drop_empty_columns,
    markdown_page,
    markdown_table,
)
from tools.dev.model_zoo.paper import SCORES, Ours, Paper, PaperTable, Row

NOTHING = Cell('–')
NO_CONFIG = Cell('no config')
NOT_RUN = 'not run'
BACKBONES = dict(focal='Focal Transformer', swin='Swin Transformer', r50='ResNet')
BLOCK = re.compile(r'(<!-- table: ([^>]+) -->\n).*?(<!-- /table -->)', re.DOTALL)

PAGE = 'paper_tables.md'
TITLE = 'The paper beside this project'
INTRODUCTION = (
    '`python -m tools.dev.model_zoo.tables` generates this page. Columns named "paper" contain '
    'what the paper (arXiv 2107.00641) and the README of its code (microsoft/Focal-Transformer) '
    'print, unless a note names another source. Columns named "ours" contain the numbers of this '
    'project. '
    "Of other architectures, only Swin's rows are repeated. Rows without a config have no numbers "
    'of this project. If two versions of a source differ, the table has both numbers '
    '("5.2 or 4.9") and a note says which is which. Columns without any value are left out.',
    'Parameters and FLOPs (multiply-accumulates) of this project are computed from its configs. '
    'Its scores are read from the logs of runs; "not run" means that there is no run. A dash '
    'means that the source prints no number or that the column does not apply.',
    'There are no weights to download: the weights that were released with the paper are no '
    'longer public, and those of Focal-L were never released.',
)
METAFILE_HEAD = """\
# Made by tools/dev/model_zoo. There are no weights and therefore no results here; the README
# lists the scores of the paper and of this project. FLOPs are multiply-accumulates, counted as
# docs/paper_tables.md says.
"""
INDEX_HEAD = """\
# Made by tools/dev/model_zoo: every metafile of configs/. MMEngine also needs this file
# to resolve `mmfocal::` base configs.
"""


class _Writer:
    """Makes a row's cells for a page in ``folder``."""

    def __init__(
        self,
        ours: Mapping[str, Ours],
        scores: Mapping[str, Mapping[str, str]],
        configs: Path,
        folder: Path,
    ) -> None:
        self.ours = ours
        self.scores = scores
        self.configs = configs
        self.folder = folder

    def config(self, row: Row) -> Cell:
        if row.config is None:
            return Cell('none')
        if row.config not in self.ours:
            return Cell(PurePosixPath(row.config).stem, is_code=True)
        href = os.path.relpath(self.configs / row.config, self.folder)
        return Cell(PurePosixPath(row.config).stem, href, is_code=True)

    def schedule(self, row: Row) -> Cell:
        ours = self.ours.get(row.config)
        if not ours:
            return NOTHING
        return Cell(f'{ours.length} {ours.unit.lower()}, batch {ours.batch_size}')

    def amount(self, row: Row, key: str, unit: float) -> tuple[Cell, Cell]:
        """Return printed and computed parameters or FLOPs."""
        left = _printed(row, key, getattr(row, key))
        if row.config not in self.ours:
            return left, NOTHING if row.config is None else NO_CONFIG
        value = getattr(self.ours[row.config], key) / unit
        is_long = key == 'flops' and value >= 100
        return left, Cell(f'{value:.1f}' if is_long else f'{value:.2f}')

    def score(self, row: Row, key: str) -> tuple[Cell, Cell]:
        """Return printed and measured score."""
        left = _printed(row, key, row.scores.get(key))
        if row.config is None or not (key in row.scores or key in row.measured):
            return left, NOTHING
        if row.config not in self.ours:
            return left, NO_CONFIG
        measured = self.scores.get(PurePosixPath(row.config).stem, {})
        return left, Cell(measured.get(key, NOT_RUN))


def agrees(printed: float, value: float) -> bool:
    """Return whether a value, rounded like the printed number, equals it."""
    decimals = len(str(printed).partition('.')[2])
    return round(value, decimals) == printed


def _printed(row: Row, key: str, value: float | None) -> Cell:
    """Format a printed number, with that of another version of the source."""
    if value is None:
        return NOTHING
    return Cell(f'{value} or {row.also[key]}' if key in row.also else str(value))


def _number_notes(rows: Iterable[Row]) -> dict[str, int]:
    notes = dict.fromkeys(note for row in rows for note in row.all_notes)
    return {note: number for number, note in enumerate(notes, 1)}


def _notes_cell(row: Row, numbers: Mapping[str, int]) -> Cell:
    return Cell(', '.join(map(str, sorted(numbers[note] for note in row.all_notes))))


def _amount_and_score_cells(row: Row, writer: _Writer, keys: Sequence[str]) -> list[Cell]:
    cells = [*writer.amount(row, 'params', 1e6), *writer.amount(row, 'flops', 1e9)]
    for key in keys:
        cells += writer.score(row, key)
    return cells


def _amount_and_score_header(keys: Sequence[str]) -> list[str]:
    names = ['params (M)', 'FLOPs (G)', *(SCORES[key].label for key in keys)]
    return [f'{name}, {whose}' for name in names for whose in ('paper', 'ours')]


def paper_grid(table: PaperTable, writer: _Writer) -> Grid:
    """Return a table of the paper with this project's columns."""
    numbers = _number_notes(table.rows)
    rows = []
    for row in table.rows:
        cells = [Cell(row.name), writer.config(row), Cell(f'{row.shape[0]}x{row.shape[1]}')]
        cells += [Cell(row.convention), *_amount_and_score_cells(row, writer, table.scores)]
        rows.append([*cells, _notes_cell(row, numbers)])
    header = ['model', 'config', 'input (h x w)', 'counted as']
    header += [*_amount_and_score_header(table.scores), 'notes']
    grid = Grid(table.title, table.source, header, rows, list(numbers))
    return drop_empty_columns(grid, NOTHING)


def zoo_grid(rows: Sequence[Row], writer: _Writer) -> Grid:
    """Return the table of a README: one row per config."""
    numbers = _number_notes(rows)
    keys = tuple(dict.fromkeys(key for row in rows for key in row.measured))
    lines = []
    for row in rows:
        cells = [writer.config(row), writer.schedule(row)]
        cells += _amount_and_score_cells(row, writer, keys)
        lines.append([*cells, _notes_cell(row, numbers)])
    header = ['config', 'schedule', *_amount_and_score_header(keys), 'notes']
    return drop_empty_columns(Grid('', '', header, lines, list(numbers)), NOTHING)


def _convention_grid(rows: Iterable[Row]) -> Grid:
    names = dict.fromkeys(row.convention for row in rows)
    cells = [
        [Cell(name), Cell(CONVENTIONS[name].meaning), Cell(CONVENTIONS[name].source)]
        for name in names
    ]
    header = ['counted as', 'what is counted', 'reproduces']
    unit = 'One multiplication and one addition count as one FLOP'
    return Grid('How FLOPs are counted', unit, header, cells, [])


def paper_page(
    paper: Paper,
    ours: Mapping[str, Ours],
    scores: Mapping[str, Mapping[str, str]],
    configs: Path,
    folder: Path,
) -> str:
    """Write the paper's tables, completed, as Markdown.

    Args:
        paper: The printed numbers.
        ours: Computed columns by config.
        scores: Measured scores by name of a config.
        configs: The folder ``configs/``, for links.
        folder: Folder of the page.

    Returns:
        The page.
    """
    writer = _Writer(ours, scores, configs, folder)
    grids = [paper_grid(table, writer) for table in paper.tables]
    grids.append(_convention_grid(row for table in paper.tables for row in table.rows))
    return markdown_page(TITLE, INTRODUCTION, grids)


def fill_readme(text: str, rows: Sequence[Row], writer: _Writer) -> str:
    """Update the tables of a README.

    Args:
        text: A README with ``<!-- table: GLOB ... -->`` where a table begins and
            ``<!-- /table -->`` where it ends. The globs match paths below ``configs/``.
        rows: One row per config.
        writer: Writer for the README's folder.

    Returns:
        The text with updated tables.

    Raises:
        ValueError: If no row matches.
    """

    def table(match: re.Match) -> str:
        globs = match[2].split()
        chosen = [row for row in rows if any(map(PurePosixPath(row.config).match, globs))]
        if not chosen:
            raise ValueError(f'{writer.folder}: no row of paper.yml has a config like {globs}')
        return match[1] + markdown_table(zoo_grid(chosen, writer)) + match[3]

    return BLOCK.sub(table, text)


def _model_entry(row: Row, ours: Ours, paper: Paper) -> dict:
    name = PurePosixPath(row.config).stem
    prefix = name.split('_')[0]
    backbone = BACKBONES.get(prefix, prefix)
    entry = {
        'Name': name,
        'In Collection': row.method.name,
        'Config': f'configs/{row.config}',
        'Metadata': {
            'Training Data': row.data,
            ours.unit: ours.length,
            'Batch Size': ours.batch_size,
            'Architecture': list(dict.fromkeys([backbone, row.method.name])),
            'Parameters': ours.params,
            'FLOPs': ours.flops,
        },
    }
    if prefix in ('focal', 'swin'):
        entry['Paper'] = {'URL': paper.paper['url'], 'Title': paper.paper['title']}
    return entry


def metafile(folder: str, paper: Paper, ours: Mapping[str, Ours]) -> str:
    """Return the metafile of one folder of configs.

    Args:
        folder: Relative to the project's root.
        paper: The printed numbers; its methods are the collections.
        ours: Computed columns by config.

    Returns:
        YAML in OpenMMLab's schema.
    """
    collections = [
        {
            'Name': method.name,
            'Metadata': {'Training Data': method.data},
            'Paper': {'URL': method.paper['url'], 'Title': method.paper['title']},
            'README': method.readme,
        }
        for method in paper.methods.values()
        if str(PurePosixPath(method.readme).parent) == folder
    ]
    models = [
        _model_entry(row, ours[row.config], paper)
        for row in paper.rows
        if row.config in ours and f'configs/{PurePosixPath(row.config).parent}' == folder
    ]
    content = {'Collections': collections, 'Models': models} if collections else {'Models': models}
    return METAFILE_HEAD + yaml.safe_dump(content, sort_keys=False, width=100)


def find_configs(configs: Path) -> list[str]:
    """Return all configs except bases, as paths below ``configs``."""
    paths = (path.relative_to(configs) for path in configs.rglob('*.py'))
    return sorted(path.as_posix() for path in paths if '_base_' not in path.parts)


def check_complete(paper: Paper, configs: Path) -> None:
    """Raise ValueError if a config has no row, or a row's config does not exist."""
    found, named = set(find_configs(configs)), {row.config for row in paper.rows} - {None}
    for config in sorted(found - named):
        raise ValueError(f'{config}: no row of tools/dev/model_zoo/paper.yml has this config')
    for config in sorted(named - found):
        raise ValueError(f'tools/dev/model_zoo/paper.yml: config {config} is not in {configs}')


def zoo_files(
    root: Path, paper: Paper, ours: Mapping[str, Ours], scores: Mapping[str, Mapping[str, str]]
) -> dict[Path, str]:
    """Return every generated file of the project.

    Args:
        root: The project's root, with ``configs/``.
        paper: The printed numbers.
        ours: Computed columns by config.
        scores: Measured scores by name of a config.

    Returns:
        Texts by path: ``docs/paper_tables.md``, READMEs and metafiles of ``configs/``, the index.

    Raises:
        ValueError: If a README's table has no config.
    """
    configs = root / 'configs'
    docs = root / 'docs'
    files = {docs / PAGE: paper_page(paper, ours, scores, configs, docs)}
    for readme in sorted(configs.rglob('*.md')):
        writer = _Writer(ours, scores, configs, readme.parent)
        files[readme] = fill_readme(readme.read_text(encoding='utf-8'), paper.rows, writer)
    folders = sorted({f'configs/{PurePosixPath(config).parent}' for config in ours})
    for folder in folders:
        files[root / folder / 'metafile.yml'] = metafile(folder, paper, ours)
    index = {'Import': [f'{folder}/metafile.yml' for folder in folders]}
    files[root / 'model-index.yml'] = INDEX_HEAD + yaml.safe_dump(index)
    return files

# SPDX-License-Identifier: Apache-2.0
"""Tables as Markdown."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Cell(NamedTuple):
    """A table cell: text, link, and whether it is formatted as code."""

    text: str
    href: str = ''
    is_code: bool = False


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        title: Heading.
        source: Source of its numbers.
        header: Headings of the columns.
        rows: Cells, row by row.
        notes: Notes, numbered from 1 in the last column.
    """

    title: str
    source: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str]


def drop_empty_columns(grid: Grid, empty: Cell) -> Grid:
    """Remove columns in which every cell is ``empty`` or has no text."""
    kept = [
        index
        for index in range(len(grid.header))
        if any(row[index] != empty and row[index].text for row in grid.rows)
    ]
    return Grid(
        grid.title,
        grid.source,
        [grid.header[index] for index in kept],
        [[row[index] for index in kept] for row in grid.rows],
        grid.notes,
    )


def _markdown_cell(cell: Cell) -> str:
    text = f'`{cell.text}`' if cell.is_code else cell.text
    return f'[{text}]({cell.href})' if cell.href else text


def markdown_table(grid: Grid) -> str:
    """Format rows and notes of a table as Markdown, without title."""
    lines = [list(grid.header), ['---'] * len(grid.header)]
    lines += [[_markdown_cell(cell) for cell in row] for row in grid.rows]
    text = ''.join(f'| {" | ".join(line)} |\n' for line in lines)
    if grid.notes:
        text += '\n' + ''.join(f'{i}. {note}\n' for i, note in enumerate(grid.notes, 1))
    return text


def markdown_page(title: str, introduction: Sequence[str], grids: Iterable[Grid]) -> str:
    """Format a page of tables as Markdown.

    Args:
        title: Heading.
        introduction: Paragraphs.
        grids: Tables.

    Returns:
        The page.
    """
    parts = [f'# {title}\n', *(f'{paragraph}\n' for paragraph in introduction)]
    for grid in grids:
        parts += [f'## {grid.title}\n', f'{grid.source}.\n', markdown_table(grid)]
    return '\n'.join(parts)

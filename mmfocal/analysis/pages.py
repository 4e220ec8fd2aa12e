# SPDX-License-Identifier: Apache-2.0
"""Tables as Markdown and as a self-contained HTML page."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from string import Template
from typing import NamedTuple


class Cell(NamedTuple):
    """A cell: text, link, and how it is shown (``ours``, ``differs`` or ``code``)."""

    text: str
    href: str = ''
    kind: str = ''


@dataclass(frozen=True)
class Grid:
    """A table to be shown.

    Attributes:
        title: Heading.
        source: Where its numbers stand.
        header: Headings of the columns.
        rows: Cells, row by row.
        notes: What the last column's numbers refer to, from 1.
    """

    title: str
    source: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str]


def _markdown_cell(cell: Cell) -> str:
    text = f'`{cell.text}`' if cell.kind == 'code' else cell.text
    return f'[{text}]({cell.href})' if cell.href else text


def markdown_table(grid: Grid) -> str:
    """Rows and notes of a table in Markdown, without its title."""
    lines = [list(grid.header), ['---'] * len(grid.header)]
    lines += [[_markdown_cell(cell) for cell in row] for row in grid.rows]
    text = ''.join(f'| {" | ".join(line)} |\n' for line in lines)
    if grid.notes:
        text += '\n' + ''.join(f'{i}. {note}\n' for i, note in enumerate(grid.notes, 1))
    return text


def markdown_page(title: str, introduction: Sequence[str], grids: Iterable[Grid]) -> str:
    """A page of tables in Markdown.

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


PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --line: #8884; --ours: #2a7f6214; --link: #1f6f8b; }
@media (prefers-color-scheme: dark) { :root { --ours: #4fd1a51c; --link: #7cc7df; } }
body { font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 80rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2 { line-height: 1.2; text-wrap: balance; }
h2 { margin: 3rem 0 0; }
a { color: var(--link); }
nav { columns: 18rem; margin: 1.5rem 0; }
nav a { display: block; }
.source { margin: .2rem 0 1rem; opacity: .75; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
th { vertical-align: bottom; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; white-space: nowrap; }
tbody tr:hover { background: #8881; }
.ours, .differs { background: var(--ours); }
.differs { font-weight: 600; }
ol { font-size: .875rem; max-width: 60rem; }
</style>
</head>
<body>
<h1>$title</h1>
$introduction
<nav>
$contents</nav>
$sections</body>
</html>
""")


def _html_cell(cell: Cell) -> str:
    text = escape(cell.text)
    if cell.kind == 'code':
        text = f'<code>{text}</code>'
    if cell.href:
        text = f'<a href="{escape(cell.href)}">{text}</a>'
    style = f' class="{cell.kind}"' if cell.kind in ('ours', 'differs') else ''
    return f'<td{style}>{text}</td>'


def _html_section(grid: Grid, anchor: str) -> str:
    head = ''.join(f'<th>{escape(title)}</th>' for title in grid.header)
    body = '\n'.join('<tr>' + ''.join(map(_html_cell, row)) + '</tr>' for row in grid.rows)
    notes = '\n'.join(f'<li>{escape(note)}</li>' for note in grid.notes)
    return (
        f'<h2 id="{anchor}">{escape(grid.title)}</h2>\n<p class="source">{escape(grid.source)}</p>'
        f'\n<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n'
        f'</table></div>\n' + (f'<ol>\n{notes}\n</ol>\n' if notes else '')
    )


def html_page(title: str, introduction: Sequence[str], grids: Sequence[Grid]) -> str:
    """A page of tables in HTML that needs no other file.

    Args:
        title: Heading.
        introduction: Paragraphs.
        grids: Tables.

    Returns:
        The page.
    """
    anchors = [f'table-{i}' for i in range(1, len(grids) + 1)]
    contents = [
        f'<a href="#{anchor}">{escape(grid.title)}</a>\n' for anchor, grid in zip(anchors, grids)
    ]
    return PAGE.substitute(
        title=escape(title),
        introduction='\n'.join(f'<p>{escape(paragraph)}</p>' for paragraph in introduction),
        contents=''.join(contents),
        sections=''.join(map(_html_section, grids, anchors)),
    )

# SPDX-License-Identifier: Apache-2.0
"""Write versions and results of one leg of the test matrix into a page's table.

Run it with the interpreter of the leg. The page has a table between the two marks below; a row of
the same leg is replaced.
"""

import platform
import re
import xml.etree.ElementTree as ElementTree
from argparse import ArgumentParser
from importlib.metadata import distributions
from pathlib import Path

MARKS = ('<!-- begin: test_matrix.sh -->', '<!-- end: test_matrix.sh -->')
LEGS = ('oldest', 'original', 'middle', 'lock', 'newest')
HEAD = (
    '| leg | Python | torch | numpy | packages | passed | skipped | failed | trained two steps |',
    '|---|---|---|---|---|---|---|---|---|',
)


def packages() -> dict[str, str]:
    """Return name and version of the relevant installed distributions."""
    wanted = re.compile(r'(onedl-)?mm\w+(-lite)?|torch|numpy')
    found = {found.metadata['Name'].lower(): found.version for found in distributions()}
    return {name: found[name] for name in sorted(found) if wanted.fullmatch(name)}


def results(report: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Return names of tests by outcome, and of the trained recipes.

    Args:
        report: Report of pytest's ``--junitxml``.
    """
    outcomes = dict(passed=[], skipped=[], failed=[])
    trained = []
    for case in ElementTree.parse(report).iterfind(
        './/testcase[@classname]'
    ):  # others did not end
        tags = {child.tag for child in case}
        outcome = 'failed' if tags & {'failure', 'error'} else 'skipped' if tags else 'passed'
        name = case.get('name')
        outcomes[outcome].append(name)
        if (
            outcome == 'passed'
            and 'plug_in.test_projects' in case.get('classname')
            and name != 'test_every_recipe_is_run'
        ):
            trained.append(re.sub(r'test_host_trains\[(\w+)\]|test_(\w+)', r'\1\2', name))
    return outcomes, trained


def row(leg: str, report: Path) -> str:
    """Return one line of the table."""
    versions = packages()
    torch, numpy = versions.pop('torch'), versions.pop('numpy')
    versions.pop('mmfocal', None)
    hosts = ', '.join(f'{name} {version}' for name, version in versions.items())
    outcomes, trained = results(report)
    counts = (str(len(outcomes[name])) for name in ('passed', 'skipped', 'failed'))
    cells = (leg, platform.python_version(), torch, numpy, hosts, *counts, ', '.join(trained))
    return f'| {" | ".join(cells)} |'


def update(page: str, leg: str, line: str) -> str:
    """Return the page with the leg's line in its table.

    Raises:
        ValueError: If the page has no marked table.
    """
    head, begin, rest = page.partition(MARKS[0])
    table, end, tail = rest.partition(MARKS[1])
    if not (begin and end):
        raise ValueError(f'the page has no lines {MARKS[0]} and {MARKS[1]}')
    rows = {row.split('|')[1].strip(): row for row in table.strip().splitlines()[len(HEAD) :]}
    rows[leg] = line
    lines = (*HEAD, *(rows[name] for name in LEGS if name in rows))
    return '\n'.join((f'{head}{begin}', *lines, f'{end}{tail}'))


def main() -> None:
    """Update the page in place."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('leg', choices=LEGS)
    parser.add_argument('report', type=Path, help='written by pytest --junitxml')
    parser.add_argument('page', type=Path)
    args = parser.parse_args()
    page = args.page.read_text(encoding='utf-8')
    args.page.write_text(update(page, args.leg, row(args.leg, args.report)), encoding='utf-8')


if __name__ == '__main__':
    main()

# SPDX-License-Identifier: Apache-2.0
"""Generate the paper's tables with this project's numbers, and the other files about the configs.

Without options, the script updates ``docs/paper_tables.md``, the tables of the READMEs in
``configs/``, every ``metafile.yml`` and ``model-index.yml``.
"""

import argparse
import logging
import sys
import warnings
from pathlib import Path

from mmengine.logging import MMLogger
from rich.progress import track

from tools.dev.model_zoo.paper import (
    PAPER_FILE,
    compute,
    read_paper,
    read_results,
    read_scores,
)
from tools.dev.model_zoo.zoo import PAGE, check_complete, paper_page, zoo_files

ROOT = Path(__file__).resolve().parents[3]


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--work-dirs', type=Path, nargs='+', default=[], help='runs whose scores are to be shown'
    )
    parser.add_argument('--out', type=Path, help='write only the page of tables, into this folder')
    parser.add_argument(
        '--check', action='store_true', help='write nothing; fail if a file is out of date'
    )
    parser.add_argument('--paper', type=Path, default=PAPER_FILE, help='the printed numbers')
    return parser.parse_args()


def be_quiet() -> None:
    """Silence messages of building 80 models, which disturb the progress bar."""
    warnings.simplefilter('ignore')
    MMLogger.get_current_instance().setLevel(logging.WARNING)


def find_outdated(files: dict[Path, str]) -> list[Path]:
    """Return files that are missing or outdated."""
    return [
        path
        for path, text in files.items()
        if not path.exists() or path.read_text(encoding='utf-8') != text
    ]


def main() -> None:
    """Write or check the files."""
    args = parse_args()
    paper = read_paper(args.paper)
    if not args.out:
        check_complete(paper, ROOT / 'configs')
    scores = {**read_results(), **read_scores(args.work_dirs)}
    be_quiet()
    ours = compute(track(paper.rows, 'Building models'), ROOT / 'configs')
    if args.out:
        page = paper_page(paper, ours, scores, ROOT / 'configs', args.out)
        files = {args.out / PAGE: page}
    else:
        files = zoo_files(ROOT, paper, ours, scores)
    outdated = find_outdated(files)
    if args.check and outdated:
        names = '\n'.join(map(str, outdated))
        sys.exit(f'out of date, run python -m tools.dev.model_zoo.tables:\n{names}')
    for path in outdated:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path], encoding='utf-8')
        print(f'wrote {path}')


if __name__ == '__main__':
    main()

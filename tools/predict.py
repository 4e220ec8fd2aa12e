# SPDX-License-Identifier: Apache-2.0
"""Predict on images, folders, videos or a camera, and draw the predictions."""

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from mmfocal.existing_outputs import replacement
from mmfocal.inference import Prediction, Predictor, Source, find_sources
from mmfocal.inference.results import FORMATS, ResultWriter
from mmfocal.inference.sources import UnreadableError

EXAMPLES = """examples:
  predict.py work_dirs/my_run photo.jpg                   the run's own config and best checkpoint
  predict.py my_config.py my.pth photos/ 'more/*.png'     a folder and a pattern
  predict.py work_dirs/my_run street.mp4 --score-thr 0.5  a video
  predict.py work_dirs/my_run 0                           a camera, until Ctrl-C"""
CHECKPOINTS = ('.pth', '.pt', '.safetensors')


def make_parser() -> ArgumentParser:
    """Describe the command line."""
    parser = ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'config', help='folder of a run (needs no checkpoint), config file, or name of a config'
    )
    parser.add_argument(
        'inputs',
        nargs='+',
        metavar='[CHECKPOINT] INPUT',
        help='checkpoint, if the first argument is a config; then images, folders, glob '
        'patterns, videos or the index of a camera',
    )
    parser.add_argument('--out', default='predictions', help='folder (default: predictions)')
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='leave out boxes with lower scores, 0 to 1 (default: 0.3)',
    )
    parser.add_argument('--device', help='such as cuda:0 or cpu (default: a GPU if there is one)')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    parser.add_argument(
        '--format',
        choices=FORMATS,
        default='json',
        help='json: a file per image (default); coco: boxes and masks of all images in one file',
    )
    parser.add_argument('--no-draw', action='store_true', help='write no images')
    parser.add_argument(
        '--allow-pickle',
        action='store_true',
        help='unpickle any object in the file, which can run any code; only for trusted files',
    )
    return parser


def _predictions(
    predictor: Predictor, source: Source, progress: Progress, bar: TaskID
) -> Iterator[Prediction]:
    """Predict on the frames of a source and update the progress bar."""
    for frame in source.frames():
        yield predictor(frame)
        progress.advance(bar)


def _check_out(out: Path, sources: Iterable[Source]) -> None:
    """Print a line if the folder is used already; check that no input is in it."""
    if out.exists() and not out.is_dir():
        raise ValueError(f'--out {out} is a file; expected a folder')
    results = [(out / name).resolve() for name in ('vis', 'preds')]
    for source in sources:
        path = Path(source.path).resolve()
        if any(path.is_relative_to(folder) for folder in results):
            raise ValueError(f'{source.path} is in {out}, where results go; choose another --out')
    if line := replacement(out):
        print(line)


def predict(args: Namespace) -> None:
    """Predict on every input and write the results."""
    checkpoint, *inputs = args.inputs
    if not checkpoint.lower().endswith(CHECKPOINTS):
        checkpoint, inputs = None, args.inputs
    if not inputs:
        raise ValueError('nothing to predict on; expected images, folders, videos or a camera')
    sources = find_sources(inputs)
    _check_out(Path(args.out), sources)
    predictor = Predictor(
        args.config,
        checkpoint,
        device=args.device,
        score_thr=args.score_thr,
        tta=args.tta,
        allow_pickle=args.allow_pickle,
    )
    print(f'{predictor.config} with {predictor.checkpoint}')
    writer = ResultWriter(args.out, args.format, draw=not args.no_draw)
    lengths = [source.length() for source in sources]
    columns = (TextColumn('predicting'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    skipped = 0
    # Ctrl-C stops a camera
    with closing(writer), Progress(*columns) as progress, suppress(KeyboardInterrupt):
        bar = progress.add_task('', total=None if None in lengths else sum(lengths))
        for source in sources:
            try:
                writer.write(source, _predictions(predictor, source, progress, bar))
            except UnreadableError as error:
                skipped += 1
                progress.advance(bar)
                text = f'skipped {error}'
                progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
    print(f'results are in {args.out}')
    if skipped:
        sys.exit(f'error: {skipped} of {len(sources)} inputs cannot be read and were skipped')


def main(argv: Sequence[str] | None = None) -> None:
    """Run the predictions of the command line."""
    args = make_parser().parse_args(argv)
    try:
        predict(args)
    except (OSError, ImportError, ValueError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()

# SPDX-License-Identifier: Apache-2.0
"""Evaluate a detector, segmentor or classifier; default_scope in the config selects the task."""

from argparse import ArgumentParser
from collections.abc import Sequence

from mmfocal.engine import (
    adapt_to_machine,
    add_common_arguments,
    build_runner,
    check_checkpoint,
    check_inputs,
    check_widths,
    leave_process_group,
    load_config,
)
from mmfocal.engine.config_shape import check_complete
from mmfocal.engine.evaluate import (
    draw_predictions,
    dump_metric,
    nothing_to_score,
    score_nothing,
    tell_written_by_metrics,
    use_tta,
    warn_of_base_names,
    write_submission,
)
from mmfocal.engine.files import protect_files
from mmfocal.engine.load import LoadWholeModel
from mmfocal.engine.outputs import SeparateLabelMaps
from mmfocal.engine.startup import explained
from mmfocal.errors import in_one_line
from mmfocal.existing_outputs import add_overwrite_argument, check_outputs


def make_parser() -> ArgumentParser:
    """Describe the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file, or name of a shipped config')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out', metavar='FILE.pkl', help='write the predictions to this pickle file'
    )
    parser.add_argument(
        '--format-only',
        metavar='TARGET',
        help='write files for a test server instead of computing a score, without annotations: '
        'TARGET.bbox.json and TARGET.segm.json (COCO), or label maps in folder TARGET (ADE20K)',
    )
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', help='draw the predictions into this folder')
    parser.add_argument(
        '--wait-time', type=float, default=2, help='seconds for which --show shows each window'
    )
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    add_overwrite_argument(parser)
    add_common_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the test of the command line."""
    args = make_parser().parse_args(argv)
    dump, hooks = [], [SeparateLabelMaps()]
    cfg = load_config(args)
    check_complete(cfg, 'test')
    check_checkpoint(args.checkpoint)
    cfg.update(load_from=None, resume=False)  # replaced by LoadWholeModel
    if args.out:
        dump = [dump_metric(cfg.default_scope, args.out)]
        check_outputs([args.out], args.overwrite, inputs=[args.checkpoint])
    if args.show or args.show_dir:
        hooks.append(draw_predictions(cfg, args.show, args.show_dir, args.wait_time))
    else:
        warn_of_base_names(cfg)
    check_widths(cfg, trains=False)
    if args.tta:
        use_tta(cfg)
    if args.format_only:
        write_submission(cfg, args.format_only, args.overwrite)
    elif reason := nothing_to_score(cfg):
        score_nothing(cfg, reason, writes=bool(args.out or args.show or args.show_dir))
    else:
        tell_written_by_metrics(cfg, 'test')
    if args.amp:
        cfg.test_cfg.fp16 = True
    adapt_to_machine(cfg)
    check_inputs(cfg, ('test',))
    protect_files(args.allow_pickle)
    with explained(cfg):
        runner = build_runner(cfg)
        runner.register_hook(LoadWholeModel(args.checkpoint, args.allow_pickle))
        for hook in filter(None, hooks):
            runner.register_hook(hook)
        runner.test_evaluator.metrics.extend(dump)
        runner.test()
    del runner
    leave_process_group()


if __name__ == '__main__':
    with in_one_line():
        main()

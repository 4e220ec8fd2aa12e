# SPDX-License-Identifier: Apache-2.0
"""The console command ``mmfocal``: starts the scripts in ``tools`` by name."""

import importlib.util
import runpy
import sys
from argparse import REMAINDER, Action, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from mmfocal.errors import in_one_line
from mmfocal.zoo import data_root


class _Command(NamedTuple):
    script: str
    meaning: str
    examples: tuple[str, ...]


COMMANDS = {
    'train': _Command(
        'train.py',
        'train a detector, segmentor or classifier',
        (
            'mmfocal train my_config.py',
            'mmfocal train quickstart/focal_nano_maskrcnn --work-dir work_dirs/nano',
            'mmfocal train my_config.py --resume --cfg-options train_dataloader.batch_size=4',
        ),
    ),
    'test': _Command(
        'test.py',
        'evaluate a checkpoint',
        ('mmfocal test my_config.py work_dirs/my_config/epoch_12.pth --show-dir images',),
    ),
    'predict': _Command(
        'predict.py',
        'predict on images, folders, videos or a camera',
        (
            'mmfocal predict work_dirs/my_config photo.jpg',
            'mmfocal predict work_dirs/my_config photos/ --out found --score-thr 0.5',
            'mmfocal predict my_config.py my.pth street.mp4 --device cuda:0',
        ),
    ),
    'new-config': _Command(
        'data/new_config.py',
        'write a config for your own data',
        (
            'mmfocal new-config --base detection/focal_t_maskrcnn_1x --train a.json --val b.json '
            '--images images --out my.py',
        ),
    ),
    'flops': _Command(
        'analysis/get_flops.py',
        'count parameters and FLOPs of a config',
        ('mmfocal flops detection/focal_t_maskrcnn_3x --depth 3',),
    ),
}
HOSTS = ('mmdet', 'mmseg', 'mmpretrain')
TOOL_EXAMPLES = (
    'mmfocal tool mmdet browse_dataset my_config.py --output-dir images --not-show',
    'mmfocal tool mmdet browse_dataset --help',
)


def _load(name: str) -> ModuleType:
    """Import a script of ``tools``."""
    path = data_root() / 'tools' / COMMANDS[name].script
    spec = importlib.util.spec_from_file_location(f'mmfocal_tool_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _make_parser(name: str, script: ModuleType) -> ArgumentParser:
    """Adapt a script's parser to this command and add examples."""
    parser = script.make_parser()
    parser.prog = f'mmfocal {name}'
    return _with_examples(parser, COMMANDS[name].examples)


def _with_examples(parser: ArgumentParser, examples: Sequence[str]) -> ArgumentParser:
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.epilog = '\n  '.join(['examples:', *examples])
    return parser


def _make_tool_parser() -> ArgumentParser:
    parser = ArgumentParser(prog='mmfocal tool', description='run a tool of a host library')
    parser.add_argument('host', choices=HOSTS, help='the library')
    parser.add_argument('name', help='name of a script in its tools, without .py')
    parser.add_argument('options', nargs=REMAINDER, help='arguments of the tool')
    return _with_examples(parser, TOOL_EXAMPLES)


def _make_env_parser() -> ArgumentParser:
    description = 'print the versions of all relevant packages, and what does not fit together'
    parser = ArgumentParser(prog='mmfocal env', description=description)
    return _with_examples(parser, ('mmfocal env',))


OTHERS = {'tool': _make_tool_parser, 'env': _make_env_parser}  # commands without a script


def _make_main_parser() -> ArgumentParser:
    examples = [command.examples[0] for command in COMMANDS.values()]
    parser = ArgumentParser(
        prog='mmfocal',
        description='Focal Transformer for detection, segmentation and classification.',
    )
    _with_examples(parser, [*examples, TOOL_EXAMPLES[0], 'mmfocal env'])
    parser.add_argument('--version', action='store_true', help='print the version')
    parser.add_argument(
        '--print-completion',
        choices=['bash', 'zsh', 'tcsh'],
        help='print the completion script of a shell (needs shtab)',
    )
    return parser


def _print_completion(shell: str) -> None:
    """Print the shell completion of every command and option."""
    try:
        import shtab
    except ImportError:
        sys.exit('mmfocal: --print-completion needs shtab: pip install shtab')
    parser = _make_main_parser()
    commands = parser.add_subparsers()
    for name, command in COMMANDS.items():
        script = _make_parser(name, _load(name))
        for action in script._actions:
            _complete_files(action, shtab.FILE)
        commands.add_parser(name, help=command.meaning, parents=[script], add_help=False)
    for name, make in OTHERS.items():
        other = make()
        commands.add_parser(name, help=other.description, parents=[other], add_help=False)
    print(shtab.complete(parser, shell))


def _complete_files(action: Action, completion: dict) -> None:
    """Let the shell complete file names for arguments that may be files."""
    takes_a_value = action.nargs != 0 and action.choices is None
    if takes_a_value and action.type in (None, Path):
        action.complete = completion


def find_host_tool(host: str, name: str) -> Path:
    """Find a script in the tools of an installed host library; exit if it has none."""
    spec = importlib.util.find_spec(host)
    if spec is None:
        sys.exit(f'mmfocal tool: {host} is not installed')
    folder = Path(spec.origin).parent / '.mim' / 'tools'
    tools: dict[str, Path] = {}
    for path in sorted(folder.rglob('*.py'), key=lambda path: (len(path.parts), path)):
        tools.setdefault(path.stem, path)  # if two share a name, the one in analysis_tools wins
    if name not in tools:
        sys.exit(f'mmfocal tool: {host} has no {name!r}; it has {", ".join(sorted(tools))}')
    return tools[name]


def _run_host_tool(arguments: Sequence[str]) -> None:
    args = _make_tool_parser().parse_args(arguments)
    tool = str(find_host_tool(args.host, args.name))
    sys.argv = [tool, *args.options]
    runpy.run_path(tool, run_name='__main__')


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        argv: Command and its options; by default ``sys.argv``.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    name, rest = (argv[0] if argv else None), argv[1:]
    if name == 'tool':
        return _run_host_tool(rest)
    if name == 'env':
        _make_env_parser().parse_args(rest)
        from mmfocal import collect_env

        return collect_env.main()
    if name in COMMANDS:
        script = _load(name)
        if {'-h', '--help'} & set(rest):
            return _make_parser(name, script).print_help()
        sys.argv[0] = f'mmfocal {name}'  # prefix of command-line errors
        with in_one_line():
            return script.main(rest)
    parser = _make_main_parser()
    commands = parser.add_subparsers(metavar='COMMAND', title='commands')
    for known, command in COMMANDS.items():
        commands.add_parser(known, help=command.meaning)
    for name, make in OTHERS.items():
        commands.add_parser(name, help=make().description)
    args = parser.parse_args(argv)
    if args.print_completion:
        return _print_completion(args.print_completion)
    if args.version:
        from mmfocal import __version__

        return print(__version__)
    parser.print_help()


if __name__ == '__main__':
    main()

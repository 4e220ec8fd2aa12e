# SPDX-License-Identifier: Apache-2.0
"""Every block of every page: its commands are parsed as they would be, its code compiles.

Bash runs the shell blocks with stand-ins for programs that only note their arguments. Commands
within sentences are treated likewise. What really runs, on less data, is in ``test_pages.py`` and
in the tests that ``RUN`` names.
"""

import argparse
import ast
import functools
import importlib.util
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from sybil import Document, Sybil
from sybil.parsers.markdown import CodeBlockParser

from mmfocal import cli
from mmfocal.engine import read_config
from mmfocal.zoo import find_config

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ('*.md', 'docs/**/*.md', 'configs/**/*.md')
    for path in ROOT.glob(pattern)
    if path.name != 'CHANGELOG.md'
)
WITH_BLOCKS = [
    page
    for page in PAGES
    if re.search(r'^ *```(shell|bash|python)', (ROOT / page).read_text(), re.MULTILINE)
]
# pages whose Python, and commands but for those on other machines, run in a test
RUN = {
    'README.md': 'tests/docs/test_pages.py',
    'configs/quickstart/README.md': 'tests/tools/test_get_flops.py',
    'docs/scale_out.md': 'tests/tools/test_scale_out.py',
    'docs/checkpoints.md': 'tests/docs/test_pages.py',
    'docs/configs.md': 'tests/docs/test_pages.py',
    'docs/flops.md': 'tests/tools/test_get_flops.py',
    'docs/focal_attention.md': 'tests/tools/test_visualize.py',
    'docs/multi_scale.md': 'tests/docs/test_pages.py',
    'docs/own_data_classification.md': 'tests/docs/test_pages.py',
    'docs/own_data_detection.md': 'tests/docs/test_pages.py',
    'docs/own_data_segmentation.md': 'tests/docs/test_pages.py',
    'docs/plug_in.md': 'tests/plug_in/test_projects.py',
    'docs/predict.md': 'tests/docs/test_pages.py',
    'docs/recipes.md': 'tests/docs/test_pages.py',
    'docs/reppointsv2.md': 'tests/docs/test_pages.py',
}
PROGRAMS = ('mmfocal', 'python', 'bash', 'pip', 'git', 'pre-commit')
OURS = (
    'tools',
    'benchmarks',
    'configs',
    'requirements',
    'docs',
    'tests',
)  # folders of the checkout
# what precedes a block; each stand-in adds a line of words, separated by a rare character
STAND_INS = """
set -euo pipefail
PATH=
note() { local IFS=$'\\x1f'; printf '%s\\x1e' "$*" >&3; }
cat() { echo "$1"; }
cd() { :; }
source() { :; }
eval() { :; }
""" + ''.join(f'{name}() {{ note {name} "$@"; }}\n' for name in PROGRAMS)


class Parsed(BaseException):
    """Raised in place of what a program does behind its command line."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options


def blocks_of(page: str) -> list[tuple[str, str]]:
    """Languages and blocks of a page; sybil must find each that a reader sees."""
    languages = ('shell', 'bash', 'python')
    found = []
    for language in languages:
        parser = CodeBlockParser(language, lambda example: None)
        document: Document = Sybil([parser], path=str(ROOT)).parse(ROOT / page)
        found += [(language, str(example.parsed)) for example in document.examples()]
    fences = re.findall(r'^ *```(\S+)', (ROOT / page).read_text(), re.MULTILINE)
    assert set(fences) <= {*languages, 'bibtex'}, 'another language'
    assert len(found) == sum(fence in languages for fence in fences)
    return found


def commands_of(text: str, folder: Path) -> list[list[str]]:
    """Words of each command of a shell block, as bash expands them."""
    script = folder / 'block.sh'
    script.write_text(STAND_INS + text)
    noted = folder / 'noted'
    done = subprocess.run(
        ['/bin/bash', '-c', f'exec 3>{noted}; . {script}'],
        cwd=folder,
        env={},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f'{text}\n{done.stderr}'
    return [line.split('\x1f') for line in noted.read_text().split('\x1e')[:-1]]


def commands_in_sentences(page: str) -> list[str]:
    """Commands of this project with arguments, outside of blocks."""
    text = re.sub(r'(?ms)^ *```.*?^ *```', '', (ROOT / page).read_text())
    spans = [' '.join(span.split()) for span in re.findall(r'(?<!`)`([^`]+)`(?!`)', text)]
    ours = r'(\w+=\S+ )*(mmfocal(?! tool [A-Z])|python( -m)?|bash) [a-z]\S* \S'
    return [span for span in spans if re.match(ours, span)]


def options_of(script: Path, arguments: list[str]) -> argparse.Namespace:
    """Parse arguments by a script's own parser; nothing behind it runs."""
    original, argv = argparse.ArgumentParser.parse_args, sys.argv

    def parse_args(self: argparse.ArgumentParser, *given: object) -> None:
        raise Parsed(original(self, *given))

    argparse.ArgumentParser.parse_args = parse_args
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    try:
        runpy.run_path(str(script), run_name='__main__')
    except Parsed as parsed:
        return parsed.options
    except SystemExit as end:
        raise AssertionError(f'{script.name} rejects {" ".join(arguments)}') from end
    finally:
        argparse.ArgumentParser.parse_args, sys.argv = original, argv
        sys.path.remove(str(script.parent))
    raise AssertionError(f'{script} parses no command line')


@functools.cache
def config_of(name: str) -> Config:
    """Read a shipped config."""
    return read_config(find_config(name))


def check_configs(options: argparse.Namespace) -> None:
    """Configs load, unless they are the reader's; settings of ``--cfg-options`` have a place."""
    for key in ('config', 'baseline', 'base'):
        name = str(getattr(options, key, None) or '')
        is_readers = name.isupper() or name.startswith(
            ('my', 'work_dirs/', 'recipes', 'faster_rcnn.py')
        )
        if name and not is_readers:
            cfg = Config(config_of(name)._cfg_dict.to_dict())
            if key == 'config':
                cfg.merge_from_dict(getattr(options, 'cfg_options', None) or {})


def check_command(words: list[str]) -> None:
    """The program exists, takes these arguments, and files of the checkout are there."""
    program, *arguments = words
    for word in arguments:
        if word.partition('/')[0] in OURS and '=' not in word:
            assert list(ROOT.glob(word)), f'{" ".join(words)}: there is no {word}'
    if program == 'mmfocal' and arguments[0] in cli.COMMANDS:
        script = ROOT / 'tools' / cli.COMMANDS[arguments[0]].script
        check_configs(options_of(script, arguments[1:]))
    elif program == 'mmfocal' and arguments[0] == 'tool':
        options_of(cli.find_host_tool(*arguments[1:3]), arguments[3:])
    elif program == 'mmfocal':
        assert arguments[0] in ('env', '--version', '--print-completion'), words
    elif program == 'python' and arguments[0] == '-m':
        found = importlib.util.find_spec(arguments[1])
        assert found, words
        if arguments[1].startswith('tools.') and arguments[2:]:
            options_of(Path(found.origin), arguments[2:])
    elif program == 'python':
        check_configs(options_of(ROOT / arguments[0], arguments[1:]))
    elif program == 'bash':
        check_script(ROOT / arguments[0], arguments[1:])


def check_script(script: Path, arguments: list[str]) -> None:
    """A shell script is correct, and its Python program takes what it hands on."""
    subprocess.run(['bash', '-n', str(script)], check=True)
    kind, _, purpose = script.stem.partition('_')
    if kind == 'slurm':
        arguments = arguments[2:]  # partition and name of the job
    if kind in ('dist', 'slurm'):
        config, *rest = arguments
        if purpose == 'test':
            checkpoint, *rest = rest
            rest = [checkpoint, *(rest[1:] if kind == 'dist' else rest)]
        else:
            rest = rest[1:] if kind == 'dist' else ['--work-dir', *rest]
        check_configs(options_of(ROOT / f'tools/{purpose}.py', [config, *rest]))


@pytest.mark.parametrize('page', WITH_BLOCKS)
def test_every_block_is_valid(page, tmp_path):
    if page in RUN:
        name = Path(page).name if '/' not in page else page
        named = re.escape(name) + '|' + rf"'{Path(page).stem}'"  # or as a parameter
        assert re.search(named, (ROOT / RUN[page]).read_text()), f'{RUN[page]} lacks {page}'
    blocks = blocks_of(page)
    for language, text in blocks:
        if language == 'python':
            ast.parse(text)
            assert page in RUN, 'no test runs the Python of this page'
    shell = '\n'.join(text for language, text in blocks if language != 'python')
    for words in commands_of(shell, tmp_path):  # later blocks have the variables of earlier ones
        check_command(words)


@pytest.mark.parametrize('page', [page for page in PAGES if commands_in_sentences(page)])
def test_every_command_in_a_sentence_is_valid(page, tmp_path):
    for words in commands_of('\n'.join(commands_in_sentences(page)), tmp_path):
        check_command(words)


@pytest.mark.parametrize(
    ('block', 'message'),
    [
        ('python tools/absent.py', r'there is no tools/absent\.py'),
        ('mmfocal train my.py --absent', 'train.py rejects my.py --absent'),
        ('absent --help', 'absent: '),
        ('for x in 1 2; do', 'syntax error'),
        ('python tools/train.py configs/detection/absent.py', r'there is no configs/detection'),
        ('bash tools/dist_test.sh CONFIG FILE 8 --absent', 'test.py rejects CONFIG FILE --absent'),
        (
            'mmfocal train focal_nano_cls --cfg-options train_dataloader.dataset.pipeline.99.a=1',
            '99',
        ),
    ],
)
def test_invalid_blocks_are_found(block, message, tmp_path):
    with pytest.raises((AssertionError, KeyError), match=message):
        for words in commands_of(block, tmp_path):
            check_command(words)

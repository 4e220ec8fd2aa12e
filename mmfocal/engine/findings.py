# SPDX-License-Identifier: Apache-2.0
"""Collect all problems of an input and report them together."""

from collections.abc import Sequence
from typing import Any

from mmengine.logging import print_log

from mmfocal.errors import InputError


class Findings:
    """Problems and the config lines that solve them.

    Args:
        quiet: Whether problems that do not prevent the run are not printed.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.errors: list[str] = []
        self.lines: dict[str, Any] = {}

    def error(self, text: str, lines: dict[str, Any] | None = None) -> None:
        """Add a problem that must be solved before the run.

        Args:
            text: One sentence with key, file, entry, value and what is expected.
            lines: Dotted config keys and the values that solve it.
        """
        if text not in self.errors:
            self.errors.append(text)
        self.lines.update(lines or {})

    def warn(self, text: str) -> None:
        """Print a problem that does not prevent the run.

        Args:
            text: As for ``error``.
        """
        self.note(f'WARNING: {text}')

    def note(self, text: str) -> None:
        """Print what a run skips, which may be intended.

        Args:
            text: As for ``error``.
        """
        if not self.quiet:
            print_log(text)  # there is no log before the run

    def report(self) -> None:
        """Raise all errors at once.

        Raises:
            InputError: If there are errors; the text ends with the config lines to write.
        """
        if not self.errors:
            return
        if len(self.errors) == 1:
            text = self.errors[0]
        else:
            numbered = (f'{i}. {error}' for i, error in enumerate(self.errors, start=1))
            text = f'{len(self.errors)} problems were found:\n' + '\n'.join(numbered)
        raise InputError(text + _lines_to_write(self.lines))


def _lines_to_write(lines: dict[str, Any]) -> str:
    """Format settings as config lines; list elements can only be set on the command line."""
    nested: dict[str, Any] = {}
    options = []
    for key, value in lines.items():
        names = key.split('.')
        if any(name.isdigit() for name in names):
            options.append(f'"{key}={value}"'.replace(' ', ''))
            continue
        node = nested
        for name in names[:-1]:
            node = node.setdefault(name, {})
        node[names[-1]] = value
    text = ''
    if nested:
        written = '\n'.join(f'  {name} = {_as_code(value)}' for name, value in nested.items())
        text += f'\nLines to write in a config that has this one as _base_:\n{written}'
    if options:
        text += f'\nOptions to add to the command:\n  --cfg-options {" ".join(options)}'
    return text


def _as_code(value: Any) -> str:
    if isinstance(value, dict):
        return f'dict({", ".join(f"{name}={_as_code(part)}" for name, part in value.items())})'
    return repr(value)


def first_few(items: Sequence[Any], count: int = 3) -> str:
    """List the first few items.

    Args:
        items: All items.
        count: Number of items to list.
    """
    shown = ', '.join(map(str, items[:count]))
    return shown if len(items) <= count else f'{shown} and {len(items) - count} more'

# SPDX-License-Identifier: Apache-2.0
"""A COCO file, read and complete."""

import gc
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..findings import Findings

try:
    import orjson
except ImportError:  # optional: it halves the time
    orjson = None

_REQUIRED = {  # what mmdet reads unconditionally
    'images': ('id', 'file_name', 'height', 'width'),
    'categories': ('id', 'name'),
    'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area'),
}


@dataclass
class CocoFile:
    """A COCO instances file and how it will be used.

    Args:
        key: Key of the file in the config.
        path: The file.
        findings: Collects the errors.
        masks: Whether masks are loaded or scored.
        scored: Whether COCO evaluation reads the file.
        may_lack_annotations: Whether annotations may be absent, as in test-dev files of COCO.
    """

    key: str
    path: str
    findings: Findings
    masks: bool = False
    scored: bool = False
    may_lack_annotations: bool = False
    content: dict = field(default_factory=dict)

    def error(self, text: str, lines: dict[str, Any] | None = None) -> None:
        """Add an error about this file.

        Args:
            text: The error, without the key.
            lines: Config lines that solve it.
        """
        self.findings.error(f'{self.key}: {text}', lines)

    def read(self) -> bool:
        """Read the file and check that the entries read by mmdet exist.

        Returns:
            Whether further checks are possible.
        """
        try:
            self.content = _parse(Path(self.path).read_bytes())
        except (ValueError, RecursionError) as error:
            self.error(f'{self.path} is not JSON: {error}')
            return False
        if not isinstance(self.content, dict):
            self.error(f'{self.path} is a {type(self.content).__name__}; expected COCO instances')
            return False
        complete = [self._has_entries(part, names) for part, names in _REQUIRED.items()]
        return all(complete)

    def _has_entries(self, part: str, names: Sequence[str]) -> bool:
        entries = self.content.get(part)
        if not entries and part == 'annotations' and self.may_lack_annotations:
            self.content[part] = []
            return True
        if not entries:
            self.error(f'{self.path} has no {part!r}; expected a COCO instances file')
            return False
        if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
            self.error(f'{part} in {self.path} is not a list of objects')
            return False
        if part == 'annotations' and self.scored:
            names = (*names, 'iscrowd')
        complete = True
        for name in names:
            lacking = [index for index, entry in enumerate(entries) if name not in entry]
            if lacking:
                complete = False
                hint = ', usually 0' if name == 'iscrowd' else ''
                self.error(
                    f'{len(lacking)} of {len(entries)} {part} in {self.path} have no {name!r}'
                    f'{hint}, the first is {part}[{lacking[0]}]'
                )
        return complete


def _parse(text: bytes) -> Any:
    """Parse JSON; NaN and infinity, which JSON lacks, are read as Python's own reader does."""
    if orjson is not None:
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            return json.loads(text)
    return json.loads(text)


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Pause the collector, which would search millions of entries for cycles again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

# SPDX-License-Identifier: Apache-2.0
"""Do heads have as many classes as the data set?"""

from collections.abc import Iterator, Sequence
from typing import Any

# What counts something else: classes of the pre-training, foreground, stuff, boundaries
_OTHER_PARTS = ('backbone', 'rpn_head', 'semantic_head')
_OTHER_TYPES = ('STDCHead',)


def check_num_classes(model: dict, key: str, classes: Sequence[str] | None) -> None:
    """Check what mmdet's ``NumClassCheckHook`` checks where a config has it.

    Args:
        model: The config's model; none is checked if it takes its classes from text.
        key: Where the config has the data set's classes.
        classes: Class names of the data set; None skips it.

    Raises:
        ValueError: If ``num_classes`` of a head differs; names its key.
    """
    if not classes or 'language_model' in model:
        return
    for head_key, found in num_classes_of('model', model):
        if found != len(classes):
            raise ValueError(
                f'{head_key}={found}, but {key} has {len(classes)} classes: {_shortened(classes)}'
            )


def num_classes_of(key: str, node: Any) -> Iterator[tuple[str, int]]:
    """Look for the ``num_classes`` of every head.

    Args:
        key: Dotted name of ``node``.
        node: A config's model, or a part of one.

    Yields:
        Dotted key and value.
    """
    if isinstance(node, (list, tuple)):
        node = dict(enumerate(node))
    elif not isinstance(node, dict) or node.get('type') in _OTHER_TYPES:
        return
    for name, child in node.items():
        if name == 'num_classes':
            yield f'{key}.{name}', child
        elif name not in _OTHER_PARTS:
            yield from num_classes_of(f'{key}.{name}', child)


def _shortened(names: Sequence[str]) -> str:
    return ', '.join(names) if len(names) <= 5 else f'{", ".join(names[:4])}, ... {names[-1]}'

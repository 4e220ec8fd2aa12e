# SPDX-License-Identifier: Apache-2.0
"""``--cfg-options``: values that stay text where text is expected, and keys that nothing reads."""

import copy
import difflib
import inspect
import re
from argparse import Action, ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mmengine import registry
from mmengine.config import Config, DictAction
from mmengine.registry import Registry
from mmengine.runner import Runner

from mmfocal.errors import InputError

from .machine import tell

# keys that MMEngine's runner and the tools read
RUNNER_KEYS = inspect.signature(Runner.__init__).parameters.keys() - {'self', 'cfg'}
TOP_LEVEL = {
    *RUNNER_KEYS,
    *('activation_checkpointing', 'compile', 'cudnn_benchmark', 'efficient_conv_bn_eval'),
    *('find_unused_parameters', 'model_wrapper_cfg', 'runner_type', 'strategy', 'sync_bn'),
    *('custom_imports', 'tta_model', 'tta_pipeline'),
}
# keys of dicts without a type, whose readers do not reject others
_READ = {
    'paramwise_cfg': (
        *('bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'dwconv_decay_mult'),
        *('flat_decay_mult', 'bypass_duplicate', 'dcn_offset_lr_mult', 'custom_keys'),
    ),
    'filter_cfg': ('filter_empty_gt', 'min_size'),
}
# which registries hold the types below a top-level key
_REGISTRIES = {
    'model': ('MODELS', 'TASK_UTILS', 'WEIGHT_INITIALIZERS'),
    'data_preprocessor': ('MODELS',),
    'dataloader': ('DATASETS', 'TRANSFORMS', 'DATA_SAMPLERS'),
    'evaluator': ('METRICS',),
    'hooks': ('HOOKS',),
    'wrapper': ('OPTIM_WRAPPERS', 'OPTIMIZERS'),
    'scheduler': ('PARAM_SCHEDULERS',),
    'cfg': ('LOOPS',),
}
# arguments that MMEngine takes out before it builds a part
_TAKEN = {'type', 'priority', 'convert_to_iter_based', 'constructor', 'paramwise_cfg'}
_TAKEN |= {'loss_scale', 'dtype'}  # after --amp has changed the type
_TEXT = (str, 'str', str | None, 'str | None', 'Optional[str]')
_PATHS = ('load_from', 'work_dir', 'resume')


class KeyValues(Action):
    """Collect ``KEY=VALUE`` words as text by key; ``merge_options`` interprets them."""

    def __call__(
        self,
        parser: ArgumentParser,
        namespace: Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Add words to those before; without ``=`` they are an error."""
        options = dict(getattr(namespace, self.dest, None) or {})
        for word in values or ():
            key, equals, value = str(word).partition('=')
            if not equals:
                parser.error(f'argument {option_string}: expected KEY=VALUE, found {word!r}')
            options[key] = value
        setattr(namespace, self.dest, options)


def merge_options(cfg: Config, options: dict[str, str]) -> None:
    """Merge the options of a command line into a config, in place.

    Args:
        cfg: The config.
        options: Text by dotted key, from ``KeyValues``.

    Raises:
        InputError: If the brackets of a value do not match, or a key leads nowhere.
    """
    try:
        merged = copy.deepcopy(cfg)  # has the types that options set
        merged.merge_from_dict(options)
        values = {key: _value_of(cfg, merged, key, text) for key, text in options.items()}
        for key in options:
            _warn_if_unknown(cfg, merged, key)
        cfg.merge_from_dict(values)
    except (KeyError, TypeError, ValueError) as error:
        words = ' '.join(f'{key}={text}' for key, text in options.items())
        raise InputError(f'--cfg-options {words}: {error}') from error


# ---- values ------------------------------------------------------------------------------------


def _value_of(cfg: Config, merged: Config, key: str, text: str) -> Any:
    present = _value_at(cfg, key)
    is_list = re.fullmatch(r'\w+(,\w+)+', text) or _is_bracketed(_unquoted(text))
    if not is_list and (isinstance(present, str) or _takes_text(cfg, merged, key)):
        return _scalar(text)
    value = parse_value(text)
    # transforms require tuples, as for scale=128,128
    is_tuple = isinstance(value, list) and isinstance(present, tuple)
    return tuple(value) if is_tuple else value


def parse_value(text: str) -> Any:
    """Interpret a value as MMEngine's ``DictAction`` does, but keep spaces and quoted commas.

    Args:
        text: A number, truth value, None, text, ``a,b``, ``[a,b]`` or ``(a,b)``, nested too.

    Returns:
        The value; ``a,b`` is a list.

    Raises:
        ValueError: If brackets do not match.
    """
    inner = _unquoted(text)
    if inner == text.strip() and _split(inner) != [inner]:
        return [parse_value(part.strip()) for part in _split(inner)]
    if _is_bracketed(inner):
        values = [parse_value(part.strip()) for part in _split(inner[1:-1]) if inner[1:-1].strip()]
        return tuple(values) if inner[0] == '(' else values
    return _scalar(text)


def _scalar(text: str) -> Any:
    value = DictAction._parse_int_float_bool(_unquoted(text))
    return value if not isinstance(value, str) or _unquoted(text) != text.strip() else text


def _unquoted(text: str) -> str:
    """Strip spaces, and the quotes around all of a text, but not those of ``'a','b'``."""
    text = text.strip()
    around = re.fullmatch(r"""(['"])(.*)\1""", text, re.S)
    return around[2] if around and not re.search(rf'{around[1]}\s*,\s*{around[1]}', text) else text


def _is_bracketed(text: str) -> bool:
    return (text[:1], text[-1:]) in (('(', ')'), ('[', ']'))


def _split(text: str) -> list[str]:
    """Split at commas outside of brackets and of quoted elements; a trailing comma is allowed."""
    parts, depth, quote = [''], 0, ''
    for letter in text:
        if quote:
            quote = '' if letter == quote else quote
        elif letter in '\'"' and not parts[-1].strip():
            quote = letter
        elif letter in '([':
            depth += 1
        elif letter in ')]':
            depth -= 1
        elif letter == ',' and depth == 0:
            parts.append('')
            continue
        parts[-1] += letter
    if depth and ',' in text:
        raise ValueError('the brackets do not match')
    return parts if parts[-1].strip() or len(parts) == 1 else parts[:-1]


# ---- keys --------------------------------------------------------------------------------------


def nearest(name: str, known: Iterable[str], cutoff: float = 0.8) -> str | None:
    """Return the most similar known name, if any is similar in lower case.

    Args:
        name: Perhaps a misspelled name.
        known: What it could mean.
        cutoff: Least similarity, see ``difflib.get_close_matches``.
    """
    names = {each.lower(): each for each in sorted(known)}
    near = difflib.get_close_matches(name.lower(), names, 1, cutoff)
    return names[near[0]] if near else None


def nearest_type(kind: str, owner: Registry, cutoff: float = 0.8) -> str | None:
    """Return the most similar name of a registry and those above it, if any is similar.

    Args:
        kind: A type, perhaps with its scope, such as ``mmdet.CocoDatset``.
        owner: The registry.
        cutoff: Least similarity, see :func:`nearest`.
    """
    names = set(owner.module_dict)
    while owner.parent is not None:
        owner = owner.parent
        names.update(owner.module_dict)
    return nearest(kind.split('.')[-1], names, cutoff)


def parameters_of(builder: Any) -> dict[str, inspect.Parameter] | None:
    """Return the arguments of a class or function by name.

    Args:
        builder: A class, with the arguments of its bases as far as ``**kwargs`` hands them on.

    Returns:
        The arguments; None if it takes any name.
    """
    found: dict[str, inspect.Parameter] = {}
    for each in inspect.getmro(builder) if inspect.isclass(builder) else (builder,):
        function = vars(each).get('__init__') if inspect.isclass(each) else each
        if function is None or each is object:
            continue
        arguments = inspect.signature(function).parameters
        found = {**arguments, **found}
        if not any(part.kind is part.VAR_KEYWORD for part in arguments.values()):
            return found
    return None


def nearest_argument(builder: Any, error: Exception) -> str:
    """Return a hint on an unknown argument, an empty string for other errors.

    Args:
        builder: The class or function that was called; None if it is unknown.
        error: What it raised.
    """
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    known = unknown and builder and parameters_of(builder)
    near = known and nearest(unknown[1], known, 0.6)
    return f'; the nearest argument is {near}' if near else ''


def _value_at(cfg: Config, key: str) -> Any:
    """Look up a dotted key; None if there is none."""
    node: Any = dict(cfg)
    for name in key.split('.') if key else ():
        if isinstance(node, dict) and name in node:
            node = node[name]
        elif isinstance(node, (list, tuple)) and name.isdigit() and int(name) < len(node):
            node = node[int(name)]
        else:
            return None
    return node


def _arguments(cfg: Config, key: str) -> dict[str, inspect.Parameter] | None:
    """Return the arguments of the part at a key; None if it has no type or that is not found."""
    part = _value_at(cfg, key)
    kind = part.get('type') if isinstance(part, dict) else None
    if not isinstance(kind, str):
        return parameters_of(kind) if callable(kind) else None
    top = key.split('.')[0]
    for name in _REGISTRIES.get(top.split('_')[-1]) or _REGISTRIES.get(top) or ():
        builder = registered(getattr(registry, name), kind, cfg.get('default_scope'))
        if builder is not None:
            return parameters_of(builder)
    return None


def registered(owner: Registry, kind: str, scope: str | None) -> Any:
    """Look up a type as a config of a host library does.

    Args:
        owner: MMEngine's registry.
        kind: ``type`` in the config.
        scope: ``default_scope``.

    Returns:
        The class or function; None if there is none.
    """
    with owner.switch_scope_and_registry(scope) as child:
        try:
            return child.get(kind)
        except (ImportError, KeyError):
            return None


def _takes_text(before: Config, after: Config, key: str) -> bool:
    """Return whether an absent key is a path of the runner or an argument annotated as text."""
    parent, _, name = key.rpartition('.')
    if not parent:
        return name in _PATHS
    if _value_at(before, key) is not None:
        return False
    argument = (_arguments(after, parent) or {}).get(name)
    return argument is not None and argument.annotation in _TEXT


def _warn_if_unknown(before: Config, after: Config, key: str) -> None:
    """Warn of the first part of a key that nothing reads, with the nearest known one."""
    path = key.split('.')
    for depth, name in enumerate(path):
        parent = '.'.join(path[:depth])
        node = _value_at(before, parent)
        if isinstance(node, (list, tuple)) or (isinstance(node, dict) and name in node):
            continue
        if name.startswith('_'):  # MMEngine's, such as _delete_
            return
        known = set(node if isinstance(node, dict) else ())
        known |= set(_READ.get(path[depth - 1], ()) if depth else TOP_LEVEL)
        arguments = _arguments(after, parent) if depth else None
        if arguments is not None:
            known |= {*arguments, *_TAKEN}
        if name in known:
            continue
        near = nearest(name, known, 0.8 if depth else 0.6)
        # dicts without a type may get keys that the config leaves at their defaults
        if near or not depth or arguments is not None:
            similar = '.'.join([*path[:depth], near or ''])
            hint = f'did you mean {similar}?' if near else 'nothing reads it'
            tell(after, f'WARNING: --cfg-options {key}: unknown key {name!r}; {hint}')
        return


def warn_of_misspelled(cfg: Config) -> None:
    """Warn of keys that resemble one that MMEngine reads; other top-level keys may be variables.

    Args:
        cfg: A config as its file says.
    """
    for name in cfg.keys() - TOP_LEVEL:
        near = nearest(name, RUNNER_KEYS, 0.87)
        # a base may define the right key; a variable such as models is of another kind
        if near and (near not in cfg or isinstance(cfg[name], type(cfg[near]))):
            tell(cfg, f'WARNING: unknown key {name} in {cfg.filename}; did you mean {near}?')
    for key, name, near in _misspelled_below('', dict(cfg)):
        tell(
            cfg,
            f'WARNING: unknown key {key}{name} in {cfg.filename}; did you mean {key}{near}?',
        )


def _misspelled_below(key: str, node: Any) -> Iterator[tuple[str, str, str]]:
    """Yield the keys that the readers of dicts without a type skip, and the nearest known ones."""
    children = node.items() if isinstance(node, dict) else enumerate(node)
    for place, child in children:
        if not isinstance(child, (dict, list, tuple)):
            continue
        known = _READ.get(place, ()) if isinstance(child, dict) else ()
        for name in child.keys() - set(known) if known else ():
            if near := nearest(str(name), known):
                yield f'{key}{place}.', name, near
        yield from _misspelled_below(f'{key}{place}.', child)

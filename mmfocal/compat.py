# SPDX-License-Identifier: Apache-2.0
"""Private and version-dependent names of PyTorch and of the hosts, in one place.

Importing this module imports torch only. If a release lacks a name, this module substitutes it or
raises an error that names it.
"""

import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module
from torch.utils import _python_dispatch


def numbers(version: str) -> tuple[int, ...]:
    """Return ``(major, minor)`` of a release."""
    return tuple(int(part) for part in re.findall(r'\d+', version)[:2])


VERSION = numbers(torch.__version__)
COMPILES_SINCE = (2, 6)
# Batch norm in evaluation mode, which has no public name; older releases run `native_batch_norm`.
EVAL_BATCH_NORM = getattr(
    torch.ops.aten, '_native_batch_norm_legit_no_training', torch.ops.aten.native_batch_norm
)


def has_global_hooks() -> bool:
    """Return whether global module hooks are registered."""
    names = ('forward_pre_hooks', 'forward_hooks', 'backward_pre_hooks', 'backward_hooks')
    return any(getattr(_module, f'_global_{name}', None) for name in names)


def has_hooks(module: nn.Module) -> bool:
    """Return whether calling the module runs hooks or a compiled ``forward``."""
    get = vars(module).get  # written out: each block asks this for all of its layers
    return bool(
        get('_forward_pre_hooks')
        or get('_forward_hooks')
        or get('_backward_pre_hooks')
        or get('_backward_hooks')
        or get('_compiled_call_impl')
    )


def call_methods() -> dict[str, object]:
    """Return those existing methods of ``nn.Module`` that run when a module is called."""
    names = ('__call__', '_wrapped_call_impl', '_call_impl', 'forward')
    return {name: vars(nn.Module)[name] for name in names if name in vars(nn.Module)}


# torch.compiler.is_compiling exists since torch 2.3; Dynamo supports the older name, too
is_compiling = getattr(torch.compiler, 'is_compiling', None) or torch._utils.is_compiling
is_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]  # no __all__


def check_compiler() -> None:
    """Raise an error if the code is compiled or exported by an unsupported PyTorch.

    Dynamo shows the line that raises it and, without ``fullgraph=True``, breaks the graph there.

    Raises:
        RuntimeError: If PyTorch is too old.
    """
    if is_compiling() and VERSION < COMPILES_SINCE:
        needed = '.'.join(map(str, COMPILES_SINCE))
        raise RuntimeError(f'mmfocal needs PyTorch {needed} or newer to be compiled or exported')


def is_traced_for_export() -> bool:
    """Return whether a call is traced by ``torch.export`` or ``torch.jit``.

    Strict export counts as compiling. Before torch 2.7, ``torch.export`` is not detected.
    """
    if getattr(torch.compiler, 'is_dynamo_compiling', is_compiling)():
        return False
    return is_tracing() or getattr(torch.compiler, 'is_exporting', lambda: False)()


def is_recorded() -> bool:
    """Return whether computations are recorded in a graph to run later."""
    return is_compiling() or is_tracing()


def are_transforms_active() -> bool:
    """Return whether a ``torch.func`` transform or forward-mode AD is active."""
    from torch.autograd import forward_ad

    is_active = getattr(torch._C, '_are_functorch_transforms_active', lambda: False)
    return is_active() or getattr(forward_ad, '_current_level', -1) >= 0


def is_dispatch_mode_active() -> bool:
    """Return whether a dispatch mode, such as a FLOP counter or fake tensors, is active."""
    mode = getattr(_python_dispatch, '_get_current_dispatch_mode', lambda: None)
    return mode() is not None


def without_dispatch_modes() -> AbstractContextManager[Any]:
    """Return a context manager that disables dispatch modes."""
    return getattr(_python_dispatch, '_disable_current_modes', nullcontext)()


def is_plain_eager() -> bool:
    """Return whether operators run eagerly, without dispatch modes and transforms."""
    return not (is_recorded() or are_transforms_active() or is_dispatch_mode_active())


def is_plain_tensor(x: Tensor) -> bool:
    """Return whether ``x`` is a tensor or parameter and of no other subclass."""
    return type(x) in (Tensor, nn.Parameter)


def is_dense_tensor(x: Tensor) -> bool:
    """Return whether ``x`` is strided, and plain or a fake tensor."""
    is_known = is_plain_tensor(x) or type(x).__name__ == 'FakeTensor'
    return is_known and x.layout == torch.strided


def is_autocast_enabled(device_type: str) -> bool:
    """Return ``torch.is_autocast_enabled(device_type)``, whose argument needs torch 2.4."""
    if device_type == 'meta':
        return False
    try:
        return torch.is_autocast_enabled(device_type)
    except TypeError:
        is_cpu = device_type == 'cpu'
        return torch.is_autocast_cpu_enabled() if is_cpu else torch.is_autocast_enabled()


def autocast_dtype(device_type: str) -> torch.dtype:
    """Return ``torch.get_autocast_dtype``, which exists since torch 2.4."""
    if hasattr(torch, 'get_autocast_dtype'):
        return torch.get_autocast_dtype(device_type)
    is_cpu = device_type == 'cpu'
    return torch.get_autocast_cpu_dtype() if is_cpu else torch.get_autocast_gpu_dtype()


def infers_schemas() -> bool:
    """Return whether operators may be annotated with ``list[int]`` and ``tuple[Tensor, Tensor]``.

    PyTorch 2.6, the first release with ``torch.library.triton_op``, accepts only the names of
    ``typing``.
    """

    def probe(x: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    try:
        torch.library.infer_schema(probe, mutates_args=())
    except (AttributeError, ValueError):
        return False
    return True


def softmax_backward_(gradient: Tensor, weights: Tensor) -> Tensor:
    """Replace the gradient of ``weights = logits.softmax(-1)`` by the gradient of the logits.

    All supported releases have this operator; it has no public name.

    Args:
        gradient: Overwritten.
        weights: Of the same shape and dtype.

    Returns:
        ``gradient``.
    """
    return torch.ops.aten._softmax_backward_data.out(
        gradient, weights, -1, weights.dtype, grad_input=gradient
    )


def has_init_info(module: nn.Module) -> bool:
    """Return whether MMEngine records how parameters are initialized."""
    return hasattr(module, '_params_init_info')


_MMENGINE, _MMDET = 'mmengine 0.10', 'mmdet 3.0 to 3.5'  # supported releases of the hosts
# Private methods of the hosts that classes here override, because there are no public ones.
_OVERRIDDEN = {
    'CheckpointHook': (('_save_checkpoint_with_step',), _MMENGINE),
    'DDPStrategy': (('_wrap_model',), _MMENGINE),
    'HybridTaskCascadeRoIHead': (('_mask_forward',), _MMDET),
    'RepPointsHead': (('_init_layers', '_bbox_decode'), _MMDET),
}


def _method(owner: Any, name: str, known: str) -> Callable[..., Any]:
    """Return a private method of a host.

    Raises:
        AttributeError: If the installed release lacks it; names that release.
    """
    if not hasattr(owner, name):
        title = getattr(owner, '__name__', type(owner).__name__)
        host = known.partition(' ')[0]
        version = getattr(sys.modules.get(host), '__version__', 'of unknown version')
        raise AttributeError(
            f'{title} of {host} {version} has no {name}; mmfocal supports {known}'
        )
    return getattr(owner, name)


def check_base(base: type) -> None:
    """Check that a host's class has the private methods that its subclass here overrides.

    Args:
        base: The class; it must be listed in ``_OVERRIDDEN``.

    Raises:
        AttributeError: If the installed release lacks one, and so would not call the override.
    """
    names, known = _OVERRIDDEN[base.__name__]
    for name in names:
        _method(base, name, known)


def import_strategies() -> tuple[type, type]:
    """Return MMEngine's ``DDPStrategy`` and ``SingleDeviceStrategy``, whose module is private.

    Raises:
        ImportError: If this MMEngine lacks them.
    """
    try:
        from mmengine._strategy import DDPStrategy, SingleDeviceStrategy
    except ImportError as error:
        import mmengine

        raise ImportError(
            f'mmengine {mmengine.__version__} has no mmengine._strategy with DDPStrategy and '
            f'SingleDeviceStrategy; mmfocal supports {_MMENGINE}'
        ) from error
    return DDPStrategy, SingleDeviceStrategy


def replace_model_lookup(
    inferencer: type, lookup: Callable[[Any, str, Callable[..., Any]], tuple[Any, Any]]
) -> None:
    """Replace the method by which MMEngine's inferencers find a model's config and weights.

    MMEngine has no public way to register names.

    Args:
        inferencer: The class.
        lookup: Function of the inferencer, the name of the model and the original method.

    Raises:
        AttributeError: If this MMEngine lacks the method.
    """
    name = '_load_model_from_metafile'
    original = _method(inferencer, name, _MMENGINE)
    setattr(inferencer, name, lambda self, model: lookup(self, model, original))


def propose(rpn_head: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Return the proposals of one image on one level before NMS.

    The public ``predict_by_feat`` does not return the levels of proposals.

    Raises:
        AttributeError: If this mmdet lacks the method.
    """
    return _method(rpn_head, '_predict_by_feat_single', _MMDET)(*args, **kwargs)


def run_branch(head: nn.Module, branch: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Run the ``'bbox'`` or ``'mask'`` branch of a RoI head, without loss or decoding.

    mmdet 3.0 to 3.5 have no public name for it.

    Raises:
        AttributeError: If the head lacks this branch.
    """
    return _method(head, f'_{branch}_forward', _MMDET)(*args, **kwargs)

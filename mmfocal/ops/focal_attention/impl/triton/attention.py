# SPDX-License-Identifier: Apache-2.0
"""Attention and its gradients as operators: allocation of outputs and kernel launches.

Triton is imported when an operator runs, not before.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmfocal import compat

from ...bias import NO_KEY
from ...geometry import regions_of
from ...inputs import FocalInputs
from . import configs
from .columns import ALIGNMENT, num_columns, to_columns
from .operators import Operator, capability, ceil_div, sizes_of, start

# Number of programs that share the gradients of a bias: several per multiprocessor of a large GPU.
# More programs take more memory, because each strip of windows has its own sum. The number, and
# with it the order of summation, does not depend on the GPU.
BIAS_PROGRAMS = 2048
# Block sizes of the kernels that only copy and add.
BLOCK_TOKENS, BLOCK_SIZE, BLOCK_BIAS, BLOCK_STRIPS = 64, 4096, 256, 16


class Plan(NamedTuple):
    """Arguments of a call's kernels other than tensors.

    Attributes:
        batch, nh, nw, num_heads: See the shape legend.
        expand_size, focal_window: Those of the geometry; kernels derive the regions.
        scale: Factor of the logits.
        sides: Side of each region, in keys.
        constants: Compile-time constants of the kernels.
        dtype: Dtype of the tokens.
        capability: Major compute capability of the GPU; 0 without a GPU.
    """

    batch: int
    nh: int
    nw: int
    num_heads: int
    expand_size: int
    focal_window: int
    scale: float
    sides: tuple[int, ...]
    constants: dict[str, Any]
    dtype: torch.dtype
    capability: int

    @property
    def of_windows(self) -> tuple[float, ...]:
        """Arguments of all kernels that visit windows."""
        sizes = (self.nh, self.nw, self.num_heads, self.expand_size, self.focal_window)
        return (*sizes, self.scale)

    @property
    def num_windows(self) -> int:
        """Number of windows of all images."""
        return self.batch * self.nh * self.nw

    @property
    def query_blocks(self) -> int:
        """Number of query blocks of a window, all heads."""
        queries = self.constants['WINDOW_SIZE'] ** 2
        return self.num_heads * ceil_div(queries, self.constants['BLOCK_Q'])

    def key_blocks(self, block: int) -> int:
        """Number of key blocks of a window."""
        return sum(ceil_div(side**2, block) for side in self.sides)

    @property
    def windows_per_strip(self) -> int:
        programs = self.query_blocks * self.key_blocks(ALIGNMENT)
        return ceil_div(self.num_windows, max(1, BIAS_PROGRAMS // programs))

    @property
    def num_strips(self) -> int:
        return ceil_div(self.num_windows, self.windows_per_strip)

    def choose(self, kernel: str) -> configs.Config:
        return configs.choose(kernel, self.dtype, self.constants['HEAD_DIM'], self.capability)


def _make_plan(
    batch: int,
    map_size: tuple[int, int],
    num_heads: int,
    head_dim: int,
    sizes: tuple[int, ...],
    shift: int,
    scale: float,
    dtype: torch.dtype,
    device: torch.device,
) -> Plan:
    window_size, expand_size, focal_window, focal_level = sizes
    largest = configs.largest_block(dtype, head_dim)
    constants = {
        'WINDOW_SIZE': window_size,
        'FOCAL_LEVEL': focal_level,
        'SHIFT': shift,
        'HEAD_DIM': head_dim,
        'BLOCK_D': configs.block(head_dim),
        'BLOCK_Q': min(largest, configs.block(window_size**2)),
    }
    regions = regions_of(window_size, expand_size, focal_window, focal_level)
    return Plan(
        batch,
        map_size[0] // window_size,
        map_size[1] // window_size,
        num_heads,
        expand_size,
        focal_window,
        scale,
        tuple(region.side for region in regions),
        constants,
        dtype,
        capability(device)[0],
    )


_kept_plan = lru_cache(maxsize=1024)(_make_plan)


def _plan_of(
    qkv: Tensor, bias: Tensor, height: int, width: int, sizes: list[int], shift: int, scale: float
) -> Plan:
    """Make the plan of a call of ``attend``; cached unless it is being compiled."""
    make = _kept_plan if compat.is_plain_tensor(qkv) else _make_plan
    num_heads = bias.shape[0]
    return make(
        qkv.shape[0],
        (height, width),
        num_heads,
        qkv.shape[2] // 3 // num_heads,
        tuple(sizes),
        shift,
        scale,
        qkv.dtype,
        qkv.device,
    )


def _with_dense_channels(x: Tensor) -> Tensor:
    """Return a tensor with contiguous channels, as kernels require; other strides may vary."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _start_chosen(
    name: str, kernel: Any, plan: Plan, blocks: Callable[[int], int], *args: Any, **constants: Any
) -> None:
    """Start a kernel with its configuration, or autotune; ``blocks`` is the number of programs."""
    constants |= plan.constants
    if configs.is_tuning() and compat.is_plain_eager():
        restored = 'sums_ptr' if name == 'gradient' else None
        kernel = configs.tuned(kernel, plan.dtype, constants['HEAD_DIM'], restored)
        start(kernel, lambda meta: (blocks(meta['BLOCK_K']),), args[0], *args, **constants)
        fastest = configs.Config.of(kernel.best_config)
        configs.print_fastest(name, plan.dtype, constants['HEAD_DIM'], plan.capability, fastest)
        return
    config = plan.choose(name)
    start(kernel, (blocks(config.BLOCK_K),), args[0], *args, **constants, **config._asdict())


def _outputs(
    qkv: Tensor, bias: Tensor, height: int, width: int, sizes: list[int], shift: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Return uninitialized outputs of ``attend``."""
    batch, _, channels = qkv.shape
    out = qkv.new_empty(batch, height, width, channels // 3)
    return out, bias.new_empty(batch, bias.shape[0], height, width)


def _attend(
    qkv: Tensor, bias: Tensor, height: int, width: int, sizes: list[int], shift: int, scale: float
) -> tuple[Tensor, Tensor]:
    from .kernels.forward import forward_kernel

    out, log_sum = _outputs(qkv, bias, height, width, sizes, shift, scale)
    if out.numel() == 0:
        return out, log_sum
    qkv = _with_dense_channels(qkv)
    plan = _plan_of(qkv, bias, height, width, sizes, shift, scale)
    num_programs = plan.num_windows * plan.query_blocks
    _start_chosen(
        'forward', forward_kernel, plan, lambda _: num_programs,
        qkv, bias, out, log_sum, *qkv.stride()[:2], *plan.of_windows,
    )  # fmt: skip
    return out, log_sum


def _prepare(plan: Plan, out: Tensor, d_out: Tensor, delta: Tensor, sums: Tensor) -> None:
    """Compute ``delta`` and fill ``sums`` with zeros."""
    from .kernels.gradients import prepare_kernel

    map_tokens = delta.shape[2] * delta.shape[3]
    batch_tokens = plan.batch * map_tokens
    num_programs = ceil_div(batch_tokens, BLOCK_TOKENS) * plan.num_heads
    num_sums = sums.numel()
    start(
        prepare_kernel, (num_programs + ceil_div(num_sums, BLOCK_SIZE),), out,
        out, d_out, delta, sums, plan.num_heads, map_tokens, batch_tokens, num_programs, num_sums,
        HEAD_DIM=plan.constants['HEAD_DIM'], BLOCK_D=plan.constants['BLOCK_D'],
        BLOCK=BLOCK_TOKENS, BLOCK_SIZE=BLOCK_SIZE, num_warps=4,
    )  # fmt: skip


def _add_gradients(plan: Plan, queries: tuple[Tensor, ...], sums: Tensor, strips: Tensor) -> None:
    """Add the gradients of tokens in any order; write those of the bias."""
    from .kernels.gradients import gradient_kernel

    qkv = queries[0]
    _start_chosen(
        'gradient', gradient_kernel, plan,
        lambda block: plan.num_strips * plan.query_blocks * plan.key_blocks(block),
        *queries, sums, strips, *qkv.stride()[:2], *plan.of_windows,
        plan.num_windows, plan.windows_per_strip, sums.shape[1], 0, IS_ORDERED=False,
    )  # fmt: skip


def _add_gradients_in_order(
    plan: Plan, queries: tuple[Tensor, ...], sums: Tensor, strips: Tensor
) -> None:
    """Do the same in a fixed order; this is slower and needs one launch per block of keys."""
    from .kernels.gradients import gradient_kernel, key_gradient_kernel

    qkv, config = queries[0], plan.choose('gradient')
    strides, constants = qkv.stride()[:2], plan.constants
    for block in range(plan.key_blocks(config.BLOCK_K)):
        start(
            gradient_kernel, (plan.num_strips * plan.query_blocks,), qkv,
            *queries, sums, strips, *strides, *plan.of_windows,
            plan.num_windows, plan.windows_per_strip, sums.shape[1], block,
            IS_ORDERED=True, **constants, **config._asdict(),
        )  # fmt: skip
    largest = configs.largest_block(plan.dtype, constants['HEAD_DIM'])
    # side of a window on each map
    coarse = (2**level for level in range(constants['FOCAL_LEVEL'] - 1))
    cells = (constants['WINDOW_SIZE'], *coarse)
    for region_index, side in enumerate(cells):
        tile = 8 if region_index == 0 and largest == 64 else 4
        tiles = ceil_div(plan.nh * side, tile) * ceil_div(plan.nw * side, tile)
        start(
            key_gradient_kernel, (plan.batch * tiles * plan.num_heads,), qkv,
            *queries, sums, *strides, *plan.of_windows, sums.shape[1], region_index,
            **constants, TILE=tile, num_warps=4, num_stages=1,
        )  # fmt: skip


def _finish(sums: Tensor, d_qkv: Tensor, strips: Tensor, d_bias: Tensor) -> None:
    """Round the sums of gradients to the dtype of ``qkv`` if it differs; sum over strips."""
    from .kernels.gradients import finish_kernel

    num_sums, num_bias = sums.numel(), d_bias.numel()
    num_programs = 0 if sums is d_qkv else ceil_div(num_sums, BLOCK_SIZE)
    start(
        finish_kernel, (num_programs + ceil_div(num_bias, BLOCK_BIAS),), sums,
        sums, d_qkv, strips, d_bias, num_sums, num_programs, strips.shape[0], num_bias,
        BLOCK_SIZE=BLOCK_SIZE, BLOCK=BLOCK_BIAS, BLOCK_STRIPS=BLOCK_STRIPS, num_warps=8,
    )  # fmt: skip


def _gradients(
    d_out: Tensor, qkv: Tensor, bias: Tensor, out: Tensor, log_sum: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    """Return uninitialized outputs of ``attend_backward``."""
    d_qkv, d_bias = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (qkv, bias))
    return d_qkv, d_bias


def _attend_backward(
    d_out: Tensor,
    qkv: Tensor,
    bias: Tensor,
    out: Tensor,
    log_sum: Tensor,
    sizes: list[int],
    shift: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    d_qkv, d_bias = _gradients(d_out, qkv, bias, out, log_sum)
    if out.numel() == 0:
        return d_qkv, d_bias.zero_()
    qkv, d_out = _with_dense_channels(qkv), d_out.contiguous()
    height, width = out.shape[1:3]
    plan = _plan_of(qkv, bias, height, width, sizes, shift, scale)
    sums = d_qkv if d_qkv.dtype == bias.dtype else bias.new_empty(d_qkv.shape)
    delta, strips = torch.empty_like(log_sum), bias.new_empty(plan.num_strips, *bias.shape)
    _prepare(plan, out, d_out, delta, sums)
    is_ordered = torch.are_deterministic_algorithms_enabled()
    add = _add_gradients_in_order if is_ordered else _add_gradients
    add(plan, (qkv, bias, log_sum, d_out, delta), sums, strips)
    _finish(sums, d_qkv, strips, d_bias)
    return d_qkv, d_bias


attend = Operator(
    'focal_attention(Tensor qkv, Tensor bias, SymInt height, SymInt width, int[] sizes,'
    ' int shift, float scale) -> (Tensor, Tensor)',
    _attend,
    _outputs,
)
attend_backward = Operator(
    'focal_attention_backward(Tensor d_out, Tensor qkv, Tensor bias, Tensor out,'
    ' Tensor log_sum, int[] sizes, int shift, float scale) -> (Tensor, Tensor)',
    _attend_backward,
    _gradients,
)


class Attend(torch.autograd.Function):
    """Autograd function: output ``(B, H, W, C)`` of the first two arguments of ``attend``."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        bias: Tensor,
        height: int,
        width: int,
        sizes: list[int],
        shift: int,
        scale: float,
    ) -> Tensor:
        out, log_sum = attend(qkv, bias, height, width, sizes, shift, scale)
        ctx.save_for_backward(qkv, bias, out, log_sum)
        ctx.others = sizes, shift, scale
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not compat.is_compiling():
            raise RuntimeError(
                "attn_impl='triton' does not support second derivatives (create_graph=True); "
                "use attn_impl='sdpa'"
            )
        gradients = attend_backward(d_out, *ctx.saved_tensors, *ctx.others)
        return *gradients, None, None, None, None, None


def focal_attention(inputs: FocalInputs, bias: Tensor) -> Tensor:
    """See :func:`mmfocal.ops.focal_attention.focal_attention`."""
    geometry = inputs.geometry
    if bias.shape[-1] != num_columns(geometry):
        bias = to_columns(bias, geometry, NO_KEY)
    others = (sizes_of(geometry), inputs.shift, inputs.scale)
    return Attend.apply(inputs.qkv, bias.contiguous(), *inputs.map_size, *others)

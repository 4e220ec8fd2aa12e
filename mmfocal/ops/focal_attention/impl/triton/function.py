# SPDX-License-Identifier: Apache-2.0
"""The kernels as PyTorch operators: what they read and write, how they start, autograd.

Triton is imported when an operator runs, not before. Operators take no objects, so ``geometry``
is a list of integers here: window size, expand size, focal window, focal level, shift size.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# How many programs share the gradients of a bias: several per multiprocessor of a large GPU. More
# would take more memory, as each strip of windows has a sum of its own. The number does not depend
# on the GPU, so neither does the order of summation.
BIAS_PROGRAMS = 2048


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _block(size: int) -> int:
    """Powers of two, as all blocks must be; dot products need at least 16."""
    return max(16, 1 << (size - 1).bit_length())


def _largest_block(dtype: torch.dtype, head_dim: int) -> int:
    """How many queries or keys fit the registers of a program.

    Half as many if heads are wide, and in float32, whose exact products no tensor core computes.
    """
    return 64 >> (_block(head_dim) > 64) >> (dtype == torch.float32)


class Region(NamedTuple):
    """The keys that all windows have on one map.

    Attributes:
        first: Place of its first key among all keys of a window.
        cells: Side of a window on this map.
        tokens: Its part of the coarse tokens; None for the fine map.
        constants: What kernels that visit this region are compiled for.
    """

    first: int
    cells: int
    tokens: slice | None
    constants: dict

    def map_of(self, fine: Tensor, coarse: Tensor, nw: int) -> Tensor:
        """View ``(B, H, W, 2C)`` or the coarse tokens ``(B, ..., 2C)`` as this region's map."""
        if self.tokens is None:
            return fine
        return coarse[:, self.tokens].unflatten(1, (-1, nw * self.cells))


def _regions(geometry: list[int], num_windows: int) -> list[Region]:
    """The fine region, then the coarse ones: the order of ``merged_bias``."""
    w, e, f, levels, shift = geometry
    size, token = w + 2 * e, 0
    fine = dict(SIZE=size, STEP=w, MARGIN=e, WRAPPED=True, SHIFT=shift)
    regions, first = [Region(0, w, None, fine)], size**2
    for cells in (2**level for level in range(levels - 1)):
        size, tokens = f + cells - 1, num_windows * cells**2
        constants = dict(SIZE=size, STEP=cells, MARGIN=f // 2, WRAPPED=False, SHIFT=0)
        regions.append(Region(first, cells, slice(token, token + tokens), constants))
        first, token = first + size**2, token + tokens
    return regions


class Problem(NamedTuple):
    """Sizes of a call, and what its kernels are compiled for."""

    geometry: list[int]
    batch: int
    nh: int
    nw: int
    constants: dict

    @classmethod
    def of(cls, qkv: Tensor, bias: Tensor, geometry: list[int], scale: float) -> 'Problem':
        """See ``attend`` for the arguments."""
        batch, height, width, channels = qkv.shape
        num_heads, area, num_keys = bias.shape
        head_dim = channels // 3 // num_heads
        constants = {
            'NUM_HEADS': num_heads,
            'HEAD_DIM': head_dim,
            'NUM_KEYS': num_keys,
            'SCALE': scale,
            'WINDOW': geometry[0],
            'BLOCK_Q': min(_largest_block(qkv.dtype, head_dim), _block(area)),
            'BLOCK_D': _block(head_dim),
        }
        return cls(geometry, batch, height // geometry[0], width // geometry[0], constants)

    @property
    def num_windows(self) -> int:
        """Windows of all images."""
        return self.batch * self.nh * self.nw

    @property
    def query_blocks(self) -> int:
        """Blocks of queries of all heads of a window."""
        blocks = _ceil_div(self.geometry[0] ** 2, self.constants['BLOCK_Q'])
        return self.constants['NUM_HEADS'] * blocks

    @property
    def all_regions(self) -> dict:
        """What kernels that visit all regions are compiled for besides ``constants``."""
        _, expand_size, focal_window, focal_level, shift_size = self.geometry
        return {
            'EXPAND': expand_size,
            'FOCAL_WINDOW': focal_window,
            'COARSE_LEVELS': focal_level - 1,
            'SHIFT': shift_size,
        }

    @property
    def regions(self) -> list[Region]:
        return _regions(self.geometry, self.nh * self.nw)


def _launch(kernel, grid, like: Tensor, *args, **constants) -> None:
    """Start a kernel on the device of ``like``.

    Where results must be reproducible, no measurement may choose the order of summation.
    """
    with torch.cuda.device_of(like):
        if hasattr(kernel, 'configs') and torch.are_deterministic_algorithms_enabled():
            kernel.fn[grid](*args, **constants, **kernel.configs[0].all_kwargs())
        else:
            kernel[grid](*args, **constants)


def _with_dense_channels(x: Tensor) -> Tensor:
    """Kernels take the channels of a token one by one; all other strides are free."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _outputs(qkv: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Uninitialised results of ``attend``."""
    batch, height, width, channels = qkv.shape
    num_heads, area, _ = bias.shape
    out = qkv.new_empty(batch, height, width, channels // 3)
    return out, bias.new_empty(batch, height * width // area, num_heads, area)


def _gradients(qkv: Tensor, coarse: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialised results of ``attend_backward``."""
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (qkv, coarse, bias))


@torch.library.custom_op('mmfocal::focal_attention_triton', mutates_args=())
def attend(
    qkv: Tensor, coarse: Tensor, bias: Tensor, geometry: list[int], scale: float
) -> tuple[Tensor, Tensor]:
    """Focal attention of every window.

    Args:
        qkv: ``(B, H, W, 3C)``.
        coarse: Keys and values of all coarse levels, one level after the other, each row-major,
            ``(B, coarse tokens, 2C)``; contiguous.
        bias: ``(h, w*w, K)`` from ``merged_bias``, contiguous; in the dtype to compute in.
        geometry: See above.
        scale: Factor on the query-key products.

    Returns:
        Output ``(B, H, W, C)`` and the log-sum-exp of all logits of a query, ``(B, N, h, w*w)``.
    """
    from . import kernels

    out, log_sum = _outputs(qkv, bias)
    if out.numel() == 0:
        return out, log_sum
    qkv = _with_dense_channels(qkv)
    problem = Problem.of(qkv, bias, geometry, scale)
    _launch(
        kernels.forward_kernel, (problem.num_windows * problem.query_blocks,), qkv,
        qkv, coarse, bias, out, log_sum, *qkv.stride()[:3], problem.nh, problem.nw,
        **problem.constants, **problem.all_regions,
    )  # fmt: skip
    return out, log_sum


@attend.register_fake
def _(qkv, coarse, bias, geometry, scale):
    return _outputs(qkv, bias)


def _query_gradient(
    problem: Problem,
    qkv: Tensor,
    coarse: Tensor,
    bias: Tensor,
    out: Tensor,
    log_sum: Tensor,
    d_out: Tensor,
    d_qkv: Tensor,
) -> Tensor:
    """Fill the first third of ``d_qkv``; returns the sums of ``out * d_out`` per head."""
    from . import kernels

    delta = torch.empty_like(log_sum)
    _launch(
        kernels.query_gradient_kernel, (problem.num_windows * problem.query_blocks,), qkv,
        qkv, coarse, bias, out, log_sum, d_out, delta, d_qkv,
        *qkv.stride()[:3], problem.nh, problem.nw,
        **problem.constants, **problem.all_regions,
    )  # fmt: skip
    return delta


def _window_gradients(
    problem: Problem,
    queries: tuple[Tensor, ...],
    bias: Tensor,
    kv: tuple[Tensor, Tensor],
    d_kv: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Gradient of the bias; adds to those of keys and values in passing.

    Args:
        problem: Sizes and constants.
        queries: ``qkv, log_sum, d_out, delta``.
        bias: ``(h, w*w, K)``.
        kv: Keys and values of the fine map and of the coarse tokens.
        d_kv: Their gradients in the dtype of the bias, or None if these are not asked for.
    """
    from . import kernels

    qkv, log_sum, d_out, delta = queries
    blocks = problem.query_blocks * _ceil_div(bias.shape[-1], 64)
    per_strip = _ceil_div(problem.num_windows, max(1, BIAS_PROGRAMS // blocks))
    strips = _ceil_div(problem.num_windows, per_strip)
    d_bias = bias.new_empty(strips, *bias.shape)
    for region in problem.regions:
        size = region.constants['SIZE'] ** 2
        source = region.map_of(*kv, problem.nw)
        target = source if d_kv is None else region.map_of(*d_kv, problem.nw)

        def grid(meta: dict, size: int = size) -> tuple[int]:
            return (strips * problem.query_blocks * _ceil_div(size, meta['BLOCK_K']),)

        _launch(
            kernels.window_gradient_kernel, grid, qkv,
            qkv, bias[..., region.first :], log_sum, d_out, delta,
            source, target, d_bias[..., region.first :],
            *qkv.stride()[:3], *source.stride()[:3], *target.stride()[:3],
            problem.nh, problem.nw, *source.shape[1:3], problem.num_windows, per_strip,
            **problem.constants, **region.constants, ADD_KEYS=d_kv is not None,
        )  # fmt: skip
    return d_bias.sum(0)


def _key_gradients(
    problem: Problem,
    queries: tuple[Tensor, ...],
    bias: Tensor,
    kv: tuple[Tensor, Tensor],
    d_kv: tuple[Tensor, Tensor],
) -> None:
    """Fill the gradients of keys and values in a fixed order; see ``_window_gradients``."""
    from . import kernels

    qkv, log_sum, d_out, delta = queries
    largest = _largest_block(qkv.dtype, problem.constants['HEAD_DIM'])
    for region in problem.regions:
        source, target = (region.map_of(*pair, problem.nw) for pair in (kv, d_kv))
        tile = 8 if region.tokens is None and largest == 64 else 4  # side of the square of keys
        rows, cols = source.shape[1:3]
        tiles = problem.batch * _ceil_div(rows, tile) * _ceil_div(cols, tile)
        _launch(
            kernels.key_gradient_kernel, (tiles * problem.constants['NUM_HEADS'],), qkv,
            qkv, bias[..., region.first :], log_sum, d_out, delta, source, target,
            *qkv.stride()[:3], *source.stride()[:3], *target.stride()[:3],
            problem.nh, problem.nw, rows, cols,
            **problem.constants, **region.constants, TILE=tile, num_warps=4, num_stages=1,
        )  # fmt: skip


@torch.library.custom_op('mmfocal::focal_attention_triton_backward', mutates_args=())
def attend_backward(
    d_out: Tensor,
    qkv: Tensor,
    coarse: Tensor,
    bias: Tensor,
    out: Tensor,
    log_sum: Tensor,
    geometry: list[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``qkv``, ``coarse`` and ``bias``; see ``attend``.

    Gradients of keys and values are summed atomically, in any order, unless
    ``torch.use_deterministic_algorithms`` is set.
    """
    d_qkv, d_coarse, d_bias = _gradients(qkv, coarse, bias)
    if out.numel() == 0:
        return d_qkv, d_coarse, d_bias.zero_()
    qkv, d_out = _with_dense_channels(qkv), d_out.contiguous()
    problem = Problem.of(qkv, bias, geometry, scale)
    delta = _query_gradient(problem, qkv, coarse, bias, out, log_sum, d_out, d_qkv)

    queries, channels = (qkv, log_sum, d_out, delta), out.shape[-1]
    kv, d_fine = (qkv[..., channels:], coarse), d_qkv[..., channels:]
    if torch.are_deterministic_algorithms_enabled():
        _key_gradients(problem, queries, bias, kv, (d_fine, d_coarse))
        d_bias = _window_gradients(problem, queries, bias, kv, None)
    else:
        sums = tuple(bias.new_zeros(x.shape) for x in kv)
        d_bias = _window_gradients(problem, queries, bias, kv, sums)
        for target, value in zip((d_fine, d_coarse), sums):
            target.copy_(value)
    return d_qkv, d_coarse, d_bias


@attend_backward.register_fake
def _(d_out, qkv, coarse, bias, out, log_sum, geometry, scale):
    return _gradients(qkv, coarse, bias)


def _save(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    qkv, coarse, bias, ctx.geometry, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(qkv, coarse, bias, *output)


def _backward(ctx, d_out: Tensor, _) -> tuple[Tensor | None, ...]:
    gradients = attend_backward(d_out, *ctx.saved_tensors, ctx.geometry, ctx.scale)
    return *gradients, None, None


def _refuse_second_derivative(ctx, *gradients: Tensor) -> None:
    raise RuntimeError(
        "attn_impl='triton' has no second derivative (create_graph=True); choose attn_impl='sdpa'"
    )


attend.register_autograd(_backward, setup_context=_save)
attend_backward.register_autograd(_refuse_second_derivative)

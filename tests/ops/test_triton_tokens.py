# SPDX-License-Identifier: Apache-2.0
"""Tokens by one kernel against plain layers; interpreted where there is no GPU."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from mmfocal.ops.focal_attention.geometry import FocalGeometry

pytest.importorskip('triton')
from mmfocal.ops.focal_attention.impl.triton import tokens as tokens_module
from tests.helpers.launches import launches
from tests.helpers.triton import needs_compilers, run_compiler

pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning:triton.*')

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
# The interpreter supports float64, in which rounding cannot hide a wrong term.
SHARPEST = torch.float32 if DEVICE == 'cuda' else torch.float64
# geometry, map, shift
CASES = {
    'padded, shifted': (FocalGeometry(7, 3, 3, 2), (9, 12), 3),
    'whole windows': (FocalGeometry(4, 1, 1, 2), (4, 8), 0),
    'one small window': (FocalGeometry(5, 1, 1, 2), (2, 3), 0),
    'no coarse level': (FocalGeometry(3), (4, 5), 1),
    'trimmed cells': (FocalGeometry(7, 1, 1, 3), (6, 9), 2),
    'four levels': (FocalGeometry(4, 1, 1, 4), (3, 5), 2),
}


def make_leaves(
    geometry: FocalGeometry, size: tuple[int, int], channels: int = 5
) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    cells = {level: geometry.cell_size(level) ** 2 for level in geometry.coarse_levels}
    shapes = {
        'x': (2, *size, channels),
        **{f'weight.{level}': (1, area) for level, area in cells.items()},
        **{f'bias.{level}': (1,) for level in cells},
    }
    return {
        name: torch.randn(shape, generator=random, dtype=torch.float64)
        for name, shape in shapes.items()
    }


def plain_tokens(
    leaves: dict[str, Tensor], geometry: FocalGeometry, shift: int, dtype: torch.dtype
) -> Tensor:
    """Pad, roll, pool by a strided convolution, and join."""
    x, w = leaves['x'], geometry.window_size
    rows, cols = (-(-size // w) for size in x.shape[1:3])
    x = F.pad(x, (0, 0, 0, cols * w - x.shape[2], 0, rows * w - x.shape[1]))
    x = torch.roll(x, (-shift, -shift), (1, 2))
    tokens = [x.flatten(1, 2)]
    for level in geometry.coarse_levels:
        p, cells = geometry.cell_size(level), (rows << level, cols << level)
        top, left = ((n - c * p) // 2 for n, c in zip(x.shape[1:3], cells))
        trimmed = x[:, top : top + cells[0] * p, left : left + cells[1] * p]
        patches = trimmed.unflatten(2, (-1, p)).unflatten(1, (-1, p))
        weight = leaves[f'weight.{level}'].view(p, 1, p, 1)
        pooled = (patches * weight).sum((2, 4)) + leaves[f'bias.{level}']
        tokens.append(pooled.flatten(1, 2))
    return torch.cat(tokens, 1).to(dtype)


def our_tokens(
    leaves: dict[str, Tensor], geometry: FocalGeometry, shift: int, dtype: torch.dtype
) -> Tensor:
    weights, biases = (
        tuple(leaves[f'{name}.{level}'] for level in geometry.coarse_levels)
        for name in ('weight', 'bias')
    )
    x = leaves['x']
    with torch.autocast(DEVICE, dtype, enabled=dtype != x.dtype):
        return tokens_module.pool_tokens(x, weights, biases, geometry, shift)


def results(
    tokens: Callable[..., Tensor], leaves: dict[str, Tensor], *args, seed_dtype: torch.dtype
) -> dict[str, Tensor]:
    """Tokens, and the gradient of each leaf from gradients that ``seed_dtype`` can hold."""
    out = tokens(leaves, *args)
    seed = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(seed_dtype)
    grads = torch.autograd.grad(out, leaves.values(), seed.to(out))
    return {'out': out, **{f'd_{name}': grad for name, grad in zip(leaves, grads)}}


def check(case: str, x_dtype: torch.dtype, dtype: torch.dtype, channels: int = 5) -> None:
    geometry, size, shift = CASES[case]
    leaves = {
        name: value.to(DEVICE, x_dtype if name == 'x' or x_dtype.itemsize > 2 else torch.float32)
        for name, value in make_leaves(geometry, size, channels).items()
    }
    leaves = {name: value.requires_grad_() for name, value in leaves.items()}
    exact = {name: value.detach().double().requires_grad_() for name, value in leaves.items()}
    truth = results(plain_tokens, exact, geometry, shift, torch.float64, seed_dtype=dtype)
    ours = results(our_tokens, leaves, geometry, shift, dtype, seed_dtype=dtype)
    # gradients of weights are those of the rounded tokens, as if a linear layer had pooled them
    w = geometry.window_size
    rows, cols = (-(-length // w) * w for length in size)
    rolled = ours['out'][:, : rows * cols].detach().double().view(2, rows, cols, channels)
    rolled = exact | {'x': rolled.requires_grad_()}
    of_rolled = results(plain_tokens, rolled, geometry, 0, torch.float64, seed_dtype=dtype)
    truth |= {name: value for name, value in of_rolled.items() if 'weight' in name}
    sum_eps = torch.finfo(torch.promote_types(x_dtype, torch.float32)).eps
    for name, expected in truth.items():
        value = ours[name]
        assert value.dtype == (dtype if name == 'out' else leaves[name[2:]].dtype), name
        assert value.is_contiguous(), name
        # the worst case of a sum over all of the map, and one rounding of the result
        eps = leaves['x'].numel() * sum_eps + torch.finfo(value.dtype).eps
        error, bound = (value - expected).abs().max(), eps * expected.abs().max()
        assert error <= bound, f'{name}: error {error:.1e}, bound {bound:.1e}'


@pytest.mark.skipif(DEVICE == 'cuda', reason='float64 is for the interpreter')
@pytest.mark.parametrize('case', CASES)
def test_equals_plain_layers(case: str) -> None:
    check(case, torch.float64, torch.float64)


@pytest.mark.parametrize(
    ('x_dtype', 'dtype'),
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float16),
    ],
)
def test_dtypes(x_dtype: torch.dtype, dtype: torch.dtype) -> None:
    """Without autocast, under autocast, and for a map that is in half precision already."""
    check('padded, shifted', x_dtype, dtype)


def test_strips_of_several_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last strip is shorter, and there are two blocks of channels."""
    monkeypatch.setattr(tokens_module, 'STRIPS', 3)
    check('padded, shifted', SHARPEST, SHARPEST, channels=40)


def test_empty_batch() -> None:
    geometry, size, shift = CASES['padded, shifted']
    leaves = make_leaves(geometry, size)
    leaves = {k: (v[:0] if k == 'x' else v).to(DEVICE, SHARPEST) for k, v in leaves.items()}
    leaves = {name: value.requires_grad_() for name, value in leaves.items()}
    values = results(our_tokens, leaves, geometry, shift, SHARPEST, seed_dtype=SHARPEST)
    assert values['out'].shape == (0, 200, 5) and values['d_x'].shape == (0, *size, 5)
    assert values['d_weight.0'].abs().sum() == 0


def op_arguments() -> tuple:
    leaves = make_leaves(FocalGeometry(2, 0, 1, 2), (3, 3), channels=2)
    x, weight, bias = (value.to(DEVICE, torch.float32) for value in leaves.values())
    return x, [weight], [bias], [2, 0, 1, 2], 1


def test_opcheck() -> None:
    x, weights, biases, sizes, shift = op_arguments()
    arguments = (x, weights, biases, sizes, shift, torch.float16)
    torch.library.opcheck(tokens_module.pool.operator, arguments)
    d_tokens = torch.ones_like(tokens_module.pool(*arguments))
    torch.library.opcheck(
        tokens_module.pool_backward.operator,
        (d_tokens, d_tokens, weights, sizes, shift, 3, 3, torch.float32),
    )


@pytest.mark.parametrize(
    ('geometry', 'reason'),
    [
        (FocalGeometry(8, 0, 1, 5), 'focal levels over 4 are not supported, got 5'),
        (FocalGeometry(17), 'windows over 16 are not supported, got 17'),
    ],
)
def test_unsupported_geometries(geometry: FocalGeometry, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        tokens_module.pool_tokens(torch.zeros(1, 8, 8, 1), [], [], geometry, 0)


def test_maps_whose_offsets_need_more_than_32_bits() -> None:
    """Padding and coarse tokens count."""
    x = torch.empty(1, 2**15, 2**10 - 1, 64, device='meta')
    assert tokens_module.unsupported_reasons(x, FocalGeometry(1)) == []
    (reason,) = tokens_module.unsupported_reasons(x, FocalGeometry(4))
    assert 'less than 2147483648 elements' in reason
    x = x[:, :, :-32]
    assert tokens_module.unsupported_reasons(x, FocalGeometry(4)) == []
    assert tokens_module.unsupported_reasons(x, FocalGeometry(4, 0, 1, 2)) == [reason]


def test_launches() -> None:
    x, weights, biases, sizes, shift = op_arguments()
    arguments = (x, weights, biases, sizes, shift, torch.bfloat16)
    assert launches(tokens_module.pool.operator, *arguments) == ['pool_kernel']
    d_tokens = tokens_module.pool(*arguments)
    names = launches(
        tokens_module.pool_backward.operator,
        *(d_tokens, d_tokens, weights, sizes, shift, 3, 3, torch.float32),
    )
    assert names == ['pool_backward_kernel', 'aten.sum.dim_IntList']


def test_compiles_whole_for_all_sizes() -> None:
    geometry, counter = FocalGeometry(2, 0, 1, 2), CompileCounterWithBackend('aot_eager')
    compiled = torch.compile(
        lambda leaves: our_tokens(leaves, geometry, 1, SHARPEST),
        fullgraph=True,
        dynamic=True,
        backend=counter,
    )
    for size in ((3, 5), (6, 3)):
        leaves = {
            name: value.to(DEVICE, SHARPEST).requires_grad_()
            for name, value in make_leaves(geometry, size, channels=2).items()
        }
        torch.testing.assert_close(
            results(compiled, leaves, seed_dtype=SHARPEST),
            results(our_tokens, leaves, geometry, 1, SHARPEST, seed_dtype=SHARPEST),
        )
    assert counter.frame_count == 1


def test_same_sums_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of strips does not depend on the GPU."""
    monkeypatch.setattr(tokens_module, 'STRIPS', 2)
    _, weights, _, sizes, shift = op_arguments()
    tokens = torch.randn(2, 5 * 4, 2, device=DEVICE)
    arguments = (tokens, tokens, weights, sizes, shift, 3, 3, torch.float32)
    first, second = (tokens_module.pool_backward(*arguments) for _ in range(2))
    assert all(map(torch.equal, first, second))


@needs_compilers
def test_compiles_for_gpus() -> None:
    """No GPU is needed to compile; float32 maps to bfloat16 tokens."""
    names = [name for name, *_ in run_compiler('tokens')]
    assert names == ['pool_kernel', 'pool_backward_kernel']

# SPDX-License-Identifier: Apache-2.0
"""The combined bias by kernels against plain PyTorch; interpreted where there is no GPU."""

import pytest
import torch
from torch import Tensor

from mmfocal.ops.focal_attention import bias as plain
from mmfocal.ops.focal_attention.bias import FocalBias
from mmfocal.ops.focal_attention.geometry import FocalGeometry

pytest.importorskip('triton')
from mmfocal.ops.focal_attention.impl.triton import bias as operator
from mmfocal.ops.focal_attention.impl.triton.columns import to_columns
from tests.helpers.launches import launches
from tests.helpers.triton import needs_compilers, run_compiler

pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning:triton.*')

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
CASES = {
    'detection': FocalGeometry(7, 3, 3, 2),
    'window only': FocalGeometry(5),
    'no neighbors': FocalGeometry(3, 0, 3, 2),
    'three levels': FocalGeometry(4, 1, 1, 3),
    'four levels, holes between keys': FocalGeometry(4, 4, 3, 4),
}


def make_bias(geometry: FocalGeometry, dtype: torch.dtype, heads: int = 3) -> FocalBias:
    w = geometry.window_size
    random = torch.Generator().manual_seed(0)

    def table(*shape: int) -> Tensor:
        value = 4 * torch.randn(shape, generator=random, dtype=torch.float64)
        return value.to(DEVICE, dtype).requires_grad_()

    neighbors = table(1, heads, w * w, geometry.num_neighbors) if geometry.expand_size else None
    coarse = (table(heads, (w + region.side - 1) ** 2) for region in geometry.regions[1:])
    return FocalBias(table((2 * w - 1) ** 2, heads), neighbors, tuple(coarse))


def results(combine, bias: FocalBias, geometry: FocalGeometry) -> list[Tensor]:
    """The combined bias and the gradient of each table."""
    out = combine(bias, geometry)
    seed = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return [out, *torch.autograd.grad(out, plain.bias_tables(bias), seed.to(out))]


def in_columns(bias: FocalBias, geometry: FocalGeometry) -> Tensor:
    """The combined bias by plain PyTorch, in columns."""
    return to_columns(plain.combined_bias(bias, geometry), geometry, plain.NO_KEY)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('case', CASES)
def test_equals_plain_pytorch(case: str, dtype: torch.dtype) -> None:
    geometry = CASES[case]
    if DEVICE == 'cuda' and dtype == torch.float64:
        pytest.skip('float64 is for the interpreter')
    bias = make_bias(geometry, dtype)
    truth = results(in_columns, plain.map_tables(Tensor.double, bias), geometry)
    ours = results(operator.combined_columns, bias, geometry)
    terms = geometry.window_size**2  # summed for an entry
    for name, value, expected in zip(('combined', *'tables' * 5), ours, truth):
        is_key = expected > plain.NO_KEY / 2
        # exponential and logarithm of a place: four roundings of a number as large as the bias
        bound = 4 * terms * torch.finfo(dtype).eps * expected[is_key].abs().max()
        error = (value - expected)[is_key].abs().max()
        assert error <= bound, f'{name}: error {error:.1e}, bound {bound:.1e}'
        assert (value[~is_key] <= plain.NO_KEY / 2).all()


def op_arguments() -> tuple[list[Tensor], list[int]]:
    sizes = [2, 1, 1, 2]
    bias = make_bias(FocalGeometry(*sizes), torch.float32, heads=1)
    return [table.detach() for table in plain.bias_tables(bias)], sizes


def test_opcheck() -> None:
    arguments = op_arguments()
    torch.library.opcheck(operator.combine.operator, arguments)
    combined = operator.combine(*arguments)
    arguments = (torch.ones_like(combined), combined, *arguments)
    torch.library.opcheck(operator.combine_backward.operator, arguments)


def test_one_kernel_forward_and_one_backward() -> None:
    arguments = op_arguments()
    assert launches(operator.combine.operator, *arguments) == ['combine_kernel']
    combined = operator.combine(*arguments)
    names = launches(operator.combine_backward.operator, combined, combined, *arguments)
    assert names == ['combine_backward_kernel']
    strided = combined.mT.contiguous().mT
    names = launches(operator.combine_backward.operator, strided, combined, *arguments)
    assert names == ['aten.clone.default', 'combine_backward_kernel']


def test_compiles_whole() -> None:
    geometry = FocalGeometry(2, 1, 1, 2)
    bias = make_bias(geometry, torch.float32, heads=1)
    compiled = torch.compile(
        lambda bias: operator.combined_columns(bias, geometry), fullgraph=True, backend='aot_eager'
    )
    torch.testing.assert_close(
        results(lambda bias, _: compiled(bias), bias, geometry),
        results(operator.combined_columns, bias, geometry),
    )


def test_gradients_lie_as_parameters_do() -> None:
    """Otherwise distributed training warns and copies them."""
    geometry = CASES['detection']
    bias = make_bias(geometry, torch.float32)
    _, *gradients = results(operator.combined_columns, bias, geometry)
    for table, gradient in zip(plain.bias_tables(bias), gradients):
        assert gradient.stride() == table.stride()


def test_second_derivative_is_unsupported() -> None:
    geometry = FocalGeometry(2)
    bias = make_bias(geometry, torch.float32)
    out = operator.combined_columns(bias, geometry).square().sum()
    (gradient,) = torch.autograd.grad(out, bias.window, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        gradient.sum().backward()


@needs_compilers
def test_compiles_for_gpus() -> None:
    """No GPU is needed to compile."""
    names = [name for name, *_ in run_compiler('bias')]
    assert names == ['combine_kernel', 'combine_backward_kernel']

# SPDX-License-Identifier: Apache-2.0
"""Stock blocks take a fast path; blocks that a user has changed run as written."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from mmengine.analysis import get_model_complexity_info
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from mmfocal import FocalTransformer
from mmfocal.models import fast_path
from mmfocal.models.fast_path import call_block, register_stock, stock_parameters
from mmfocal.models.focal_transformer import FocalAttention, FocalBlock, FocalStage
from mmfocal.models.layers import Mlp
from mmfocal.ops.cpu import block as block_module
from mmfocal.ops.focal_attention import FocalGeometry
from mmfocal.ops.focal_attention.impl import triton
from tests.helpers.triton import check_fast_path

GEOMETRY = FocalGeometry(3, 1, 3, 2)
DIM = 8
needs_interpreter = pytest.mark.skipif(
    bool(triton.device_reasons(torch.device('cpu'), torch.float32)),
    reason="needs Triton's interpreter",
)


@pytest.fixture
def fast_calls(count_calls: Callable) -> list:
    """Grows with each block that does not run as written."""
    calls = count_calls(block_module, '_attend')
    original = block_module.run_block
    block_module.run_block = lambda *args: calls.append(args) or original(*args)
    yield calls
    block_module.run_block = original


def make_block(**cfg) -> FocalBlock:
    torch.manual_seed(0)
    block = FocalBlock(DIM, 2, GEOMETRY, **cfg)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Lora(nn.Module):
    """A low-rank adapter around a linear layer, as PEFT libraries make it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.a, self.b = (
            nn.Parameter(torch.randn(2, base.in_features)),
            nn.Parameter(torch.randn(base.out_features, 2)),
        )

    @property
    def weight(self) -> Tensor:
        """Weight of the wrapped layer only; code that reads it ignores the adapter."""
        return self.base.weight

    @property
    def bias(self) -> Tensor:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.a.t() @ self.b.t()

    def merged(self) -> nn.Linear:
        merged = copy.deepcopy(self.base)
        merged.weight.data += (self.b @ self.a).detach()
        return merged


class TwiceLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class TwiceGelu(nn.GELU):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class NoisyDropout(nn.Dropout):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


class OtherAttend(FocalBlock):
    def _attend(self, x: Tensor) -> Tensor:
        return 3 * super()._attend(x)


def cast(module: nn.Module, cls: type) -> None:
    module.__class__ = cls


def hook_everything(block: FocalBlock) -> None:
    block.register_forward_hook(lambda module, args, out: 2 * out)


def pool_by_convolution(block: FocalBlock) -> None:
    block.pool_layers[0] = nn.Conv2d(DIM, DIM, 3, 3, groups=DIM)
    block.pool_method = 'conv'


CHANGES: dict[str, Callable[[FocalBlock], object]] = {
    'pruned qkv': lambda b: prune.l1_unstructured(b.attn.qkv, 'weight', 0.3),
    'pruned MLP': lambda b: prune.random_unstructured(b.mlp.fc1, 'weight', 0.5),
    'pruned bias': lambda b: prune.l1_unstructured(b.attn.proj, 'bias', 0.5),
    'pruned pooling': lambda b: prune.l1_unstructured(b.pool_layers[0], 'weight', 0.5),
    'spectral norm': lambda b: spectral_norm(b.attn.qkv),
    'weight norm': lambda b: weight_norm(b.mlp.fc2),
    'parametrized spectral norm': lambda b: parametrizations.spectral_norm(b.attn.proj),
    'parametrized table': lambda b: parametrize.register_parametrization(
        b.attn, 'relative_position_bias_table', Doubled()
    ),
    'parametrized norm': lambda b: parametrize.register_parametrization(
        b.norm1, 'weight', Doubled()
    ),
    'wrapped qkv': lambda b: setattr(b.attn, 'qkv', Lora(b.attn.qkv)),
    'wrapped proj': lambda b: setattr(b.attn, 'proj', Lora(b.attn.proj)),
    'wrapped MLP': lambda b: setattr(b.mlp, 'fc1', Lora(b.mlp.fc1)),
    'sequential': lambda b: setattr(b.mlp, 'fc2', nn.Sequential(b.mlp.fc2, Doubled())),
    'subclass of Linear': lambda b: cast(b.attn.qkv, TwiceLinear),
    'subclass of GELU': lambda b: cast(b.mlp.act, TwiceGelu),
    'subclass of Dropout': lambda b: cast(b.attn.proj_drop, NoisyDropout),
    'subclass of the block': lambda b: cast(b, OtherAttend),
    'subclass of the MLP': lambda b: cast(
        b.mlp, type('Other', (Mlp,), {'forward': lambda m, x: x})
    ),
    'other norm': lambda b: setattr(b, 'norm2', nn.Identity()),
    'norm without bias': lambda b: setattr(b.norm2, 'bias', None),
    'layer without bias': lambda b: setattr(b.mlp.fc2, 'bias', None),
    'tanh GELU': lambda b: setattr(b.mlp, 'act', nn.GELU('tanh')),
    'other activation': lambda b: setattr(b.mlp, 'act', nn.ReLU()),
    'replaced forward': lambda b: setattr(b.mlp, 'forward', torch.sin),
    'replaced method': lambda b: setattr(b, '_attend', torch.sin),
    'hook of the block': hook_everything,
    'hook of qkv': lambda b: b.attn.qkv.register_forward_hook(lambda m, args, out: 2 * out),
    'pre-hook of a norm': lambda b: b.norm1.register_forward_pre_hook(
        lambda m, args: (args[0].sin(),)
    ),
    'hook of pooling': lambda b: b.pool_layers[0].register_forward_hook(
        lambda m, args, out: out + 1
    ),
    'convolution pools': pool_by_convolution,
    'replaced call': lambda b: setattr(b.mlp, '_call_impl', torch.sin),
    'another MLP': lambda b: setattr(b, 'mlp', nn.Linear(DIM, DIM)),
    'norm of two dimensions': lambda b: setattr(b, 'norm1', nn.LayerNorm((10, DIM))),
    'sdpa': lambda b: setattr(b.attn, 'impl', 'sdpa'),
}
SAME_RESULT = ('sdpa', 'weight norm')  # all others change what is computed


@pytest.mark.filterwarnings('ignore:.*weight_norm:FutureWarning')
@pytest.mark.parametrize('name', CHANGES)
def test_changed_blocks_run_as_written(name: str, fast_calls: list) -> None:
    """Inference and two training steps equal those of the layers, called one by one."""
    x = torch.randn(2, 6, 10, DIM)
    block = make_block()
    with torch.no_grad():
        before = call_block(block, x)
    assert len(fast_calls) == 1
    twin = make_block()  # most changed layers cannot be copied
    for changed in (block, twin):
        torch.manual_seed(3)
        CHANGES[name](changed)
    for mode in (False, True):
        block.train(mode), twin.train(mode)
        with torch.set_grad_enabled(mode):
            ours, plain = call_block(block, x), twin(x)
        assert torch.equal(ours, plain)
        assert name in SAME_RESULT or not torch.allclose(ours, before)
    for model, call in ((block, lambda value: call_block(block, value)), (twin, twin)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            call(x).square().mean().backward()
            optimizer.step()
    for (key, ours), (_, plain) in zip(
        block.named_parameters(), twin.named_parameters(), strict=True
    ):
        assert torch.equal(ours, plain), key
    assert len(fast_calls) == 1


@needs_interpreter
@pytest.mark.filterwarnings('ignore::DeprecationWarning:triton.*')
def test_kernels_compute_what_the_layers_compute(count_calls: Callable) -> None:
    calls = count_calls(fast_path, 'run_block')
    check_fast_path(torch.float64, 1e-13)
    assert len(calls) == 1


@needs_interpreter
@pytest.mark.filterwarnings('ignore::DeprecationWarning:triton.*')
@pytest.mark.parametrize(
    'name', ['pruned qkv', 'wrapped proj', 'hook of pooling', 'parametrized norm', 'spectral norm']
)
@torch.no_grad()
def test_changed_blocks_skip_the_kernels(name: str, count_calls: Callable) -> None:
    """Changed layers run as written, with the attention of the GPU."""
    calls, x = count_calls(fast_path, 'run_block'), torch.randn(1, 3, 4, DIM).double()
    block, twin = make_block(impl='triton'), make_block(impl='reference')
    call_block(block.double(), x)
    assert len(calls) == 1
    for changed in (block, twin.double()):
        torch.manual_seed(3)
        CHANGES[name](changed.eval())
    torch.testing.assert_close(call_block(block.double(), x), twin.double()(x))
    assert len(calls) == 1


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('name', ['attn.qkv', 'attn.proj', 'mlp.fc1', 'mlp.fc2'])
def test_wrapped_equals_merged(name: str, training: bool) -> None:
    block, x = make_block().double().train(training), torch.randn(2, 6, 10, DIM).double()
    parent, leaf = block.get_submodule(name.split('.')[0]), name.split('.')[1]
    adapter = Lora(getattr(parent, leaf)).double()
    setattr(parent, leaf, adapter)
    with torch.set_grad_enabled(training):
        wrapped = call_block(block, x)
        setattr(parent, leaf, adapter.merged())
        merged = call_block(block, x)
    torch.testing.assert_close(wrapped, merged, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings('ignore:torch.ao.quantization is deprecated')
def test_dynamic_quantization_finds_the_layers() -> None:
    arch = dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2))
    model, x = FocalTransformer(arch).eval(), torch.randn(1, 3, 64, 64)
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})
    layers = [m for m in quantized.modules() if type(m).__module__.startswith('torch.ao')]
    assert sum(type(m).__name__ == 'Linear' for m in layers) == 4 * 4  # qkv, proj, fc1, fc2
    with torch.no_grad():
        outs, exact = quantized(x), model(x)
    for ours, plain in zip(outs, exact, strict=True):
        error = (ours - plain).norm() / plain.norm()
        assert 0 < error < 0.05  # int8, and really quantized


def test_blocks_of_other_kinds(fast_calls: list) -> None:
    stage = FocalStage(DIM, 2, GEOMETRY, [0.0, 0.0])
    stage.blocks[0] = nn.Identity()
    stage(torch.randn(1, 6, 6, DIM))
    assert len(fast_calls) == 1


@torch.no_grad()
def test_layers_are_visited_if_the_backend_has_a_fast_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    visited, block, x = [], make_block(), torch.randn(1, 6, 6, DIM)
    monkeypatch.setattr(fast_path, 'stock_parameters', visited.append)
    call_block(block, x)
    block.attn.impl = 'sdpa'
    call_block(block, x)
    assert visited == [block]


@needs_interpreter
def test_dtype_of_autocast_decides() -> None:
    """The map is still float32, but autocast casts the tokens; the interpreter lacks bfloat16."""
    block, x = make_block(impl='triton'), torch.randn(1, 6, 6, DIM)
    assert fast_path._path_of(block, x) == 'triton'
    with torch.autocast('cpu', torch.bfloat16):
        assert fast_path._path_of(block, x) is None


@needs_interpreter
@torch.no_grad()
def test_wide_windows_run_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel would hold all of the window at once."""
    block, x = make_block(impl='triton'), torch.randn(1, 6, 6, DIM)
    parameters = stock_parameters(block)
    assert fast_path._supports('triton', block, parameters, x)
    monkeypatch.setattr(triton.tokens, 'MAX_WINDOW_SIZE', 2)
    assert not fast_path._supports('triton', block, parameters, x)


@torch.no_grad()
def test_global_hooks_are_called(fast_calls: list) -> None:
    seen, block = [], make_block()
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, out: seen.append(module)
    )
    call_block(block, torch.randn(1, 6, 6, DIM))
    handle.remove()
    assert not fast_calls and block.norm1 in seen and block.mlp.fc1 in seen


@torch.no_grad()
@pytest.mark.parametrize('cls', [FocalBlock, FocalAttention, Mlp, nn.Linear, nn.Module])
@pytest.mark.parametrize('name', ['forward', '__call__', '_attend'])
def test_patched_class(
    cls: type, name: str, fast_calls: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replaced method of a layer's type disables the fast path until it is restored."""
    if (name == '_attend' and cls is not FocalBlock) or (cls, name) == (nn.Module, 'forward'):
        pytest.skip('calling a block runs no such method')
    block, x, original = make_block(), torch.randn(1, 6, 10, DIM), getattr(cls, name)
    with monkeypatch.context() as patch:
        changed = lambda self, *args: 2 * original(self, *args)  # noqa: E731
        patch.setattr(cls, name, changed, raising=False)
        ours, plain = call_block(block, x), block(x)
    assert torch.equal(ours, plain) and not fast_calls
    assert not torch.equal(call_block(block, x), plain) and len(fast_calls) == 1


def test_types_patched_before_the_import_are_not_stock() -> None:
    class Linear(nn.Linear):
        forward = torch.sin

    Linear.__module__ = 'torch.nn.modules.linear'
    register_stock(Linear)
    block = make_block()
    cast(block.attn.qkv, Linear)
    assert stock_parameters(block) is None


@torch.no_grad()
@pytest.mark.parametrize('heads', [1, 3])
def test_removed_heads(heads: int, fast_calls: list) -> None:
    """Structured pruning leaves smaller layers of the stock types."""
    torch.manual_seed(0)
    block, wide = make_block(), heads * DIM // 2
    block.attn.qkv, block.attn.proj = nn.Linear(DIM, 3 * wide), nn.Linear(wide, DIM)
    tables = FocalAttention(wide, heads, GEOMETRY)
    for name, parameter in tables.named_parameters():
        if 'table' in name:
            owner, _, last = name.rpartition('.')
            setattr(block.attn.get_submodule(owner), last, parameter)
    x = torch.randn(2, 7, 9, DIM)
    torch.testing.assert_close(call_block(block, x), block(x), atol=1e-5, rtol=1e-5)
    assert len(fast_calls) == 1


def test_wrapped_pooling_gets_the_same_cells() -> None:
    class Wrapper(nn.Module):
        def __init__(self, pool: nn.Module) -> None:
            super().__init__()
            self.pool = pool

        def forward(self, cells: Tensor) -> Tensor:
            return self.pool(cells)

    block, x = make_block(), torch.randn(1, 6, 9, DIM)
    expected = block(x)
    block.pool_layers[0] = Wrapper(block.pool_layers[0])
    torch.testing.assert_close(call_block(block, x), expected)


@torch.no_grad()
def test_tables_of_a_wrong_size_are_refused() -> None:
    block = make_block()
    block.attn.relative_position_bias_table = nn.Parameter(torch.zeros(24, 2))
    with pytest.raises(ValueError, match=r'bias.window must have shape \(25, 2\), got \(24, 2\)'):
        call_block(block, torch.randn(1, 6, 6, DIM))


def test_compiled_block_runs_compiled(fast_calls: list) -> None:
    block, graphs = make_block(), []
    block.compile(backend=lambda graph, _: graphs.append(graph) or graph)
    call_block(block, torch.randn(1, 6, 6, DIM))
    assert graphs and not fast_calls


def test_parameters_as_plain_attributes() -> None:
    """Functional code and flat parameters leave plain attributes, which are still trained."""
    block, x = make_block().requires_grad_(False), torch.randn(1, 6, 6, DIM)
    weight = block.mlp.fc1.weight.detach().clone().requires_grad_()
    del block.mlp.fc1.weight
    block.mlp.fc1.weight = weight
    call_block(block, x).sum().backward()
    assert weight.grad.abs().sum() > 0


def test_sparse_parameters_are_not_stock() -> None:
    block = make_block()
    block.mlp.fc1.weight = nn.Parameter(block.mlp.fc1.weight.detach().to_sparse_csr())
    assert stock_parameters(block) is None


def test_active_dropout_runs_as_written(fast_calls: list) -> None:
    block, x = make_block(drop=0.5).train(), torch.randn(1, 6, 6, DIM)
    assert not torch.equal(call_block(block, x), call_block(block, x))
    block = make_block(attn_drop=0.5).train()
    assert not torch.equal(call_block(block, x), call_block(block, x))
    assert not fast_calls
    call_block(block.eval(), x)
    assert len(fast_calls) == 1


def test_stochastic_depth_is_the_same(fast_calls: list) -> None:
    block, x = make_block(drop_path=0.5).train(), torch.randn(8, 6, 6, DIM)
    outs = []
    for call in (block, lambda value: call_block(block, value)):
        torch.manual_seed(1)
        outs.append(call(x))
    torch.testing.assert_close(*outs)
    assert len(fast_calls) == 1
    outs.clear()
    for call in (block, lambda value: call_block(block, value)):
        torch.manual_seed(1)
        with torch.no_grad():
            outs.append(call(x))
    torch.testing.assert_close(*outs)
    assert not torch.allclose(outs[0], block.eval()(x))


@pytest.fixture
def watched() -> Iterator[tuple[FocalBlock, list]]:
    block, kept = make_block(), []
    block.pool_layers[0].register_forward_pre_hook(lambda module, args: kept.append(args[0]))
    yield block, kept


@torch.no_grad()
def test_what_a_hook_keeps_stays(watched: tuple[FocalBlock, list]) -> None:
    """Hooks never get scratch memory."""
    block, kept = watched
    x = torch.randn(1, 6, 6, DIM)
    call_block(block, x)
    before = kept[0].clone()
    call_block(block, 2 * x)
    assert torch.equal(kept[0], before)


def test_flop_counter_sees_the_layers() -> None:
    stage = FocalStage(DIM, 2, GEOMETRY, [0.0])
    analysis = get_model_complexity_info(stage, input_shape=(6, 6, DIM), show_table=False)
    assert analysis['flops'] >= 36 * (4 * DIM**2 + 8 * DIM**2)


def test_compiles_and_exports() -> None:
    stage, x = FocalStage(DIM, 2, GEOMETRY, [0.0]), torch.randn(1, 6, 6, DIM)
    compiled = torch.compile(stage, fullgraph=True, backend='eager')
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), stage(x))
        torch.testing.assert_close(torch.export.export(stage, (x,)).module()(x), stage(x))


@pytest.mark.parametrize(
    ('owner', 'name', 'value'),
    [
        ('', 'pool_method', 'mean'),
        ('norm1', 'normalized_shape', (DIM // 2,)),
        ('norm2', 'normalized_shape', (2, DIM)),
        ('attn', 'geometry', FocalGeometry(3)),
    ],
)
def test_settings_that_fast_paths_do_not_read(owner: str, name: str, value: object) -> None:
    block = make_block()
    assert stock_parameters(block) is not None
    setattr(block.get_submodule(owner), name, value)
    assert stock_parameters(block) is None


def test_tensor_subclasses_are_not_stock() -> None:
    class Quantized(torch.Tensor):
        pass

    block = make_block()
    assert stock_parameters(block) is not None
    weight = block.attn.qkv.weight.detach().as_subclass(Quantized)
    block.attn.qkv.weight = nn.Parameter(weight)
    assert type(block.attn.qkv.weight) is Quantized and stock_parameters(block) is None

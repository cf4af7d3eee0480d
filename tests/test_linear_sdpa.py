"""The CPU kernels equal PyTorch's operators in values and gradients, on every kind of tensor."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sensorium.errors import SensoriumError
from sensorium.nn import cpu_dispatch
from sensorium.nn import linear as linear_module
from sensorium.nn.cpu_dispatch import LINEAR_BACKENDS
from sensorium.nn.linear import Linear, linear
from sensorium.nn.sdpa import ExplicitAttention, attend, self_attend

onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)


@pytest.fixture
def use_backend(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Compute all linear layers by the chosen backend."""

    def use(backend: str) -> None:
        monkeypatch.setattr(linear_module, "linear_backend", lambda dtype: backend)

    return use


def _grads(y: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), inputs)]


def _close(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    """Within `tolerance` of the largest value."""
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert (a.float() - b.float()).abs().max() <= tolerance * b.float().abs().max().clamp(
            min=1e-3
        )


def _layer(
    dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (3, 7, 24), bias: bool = True
) -> list[Tensor]:
    torch.manual_seed(0)
    inputs = [torch.randn(shape), torch.randn(40, 24), *([torch.randn(40)] if bias else [])]
    return [x.to(dtype).requires_grad_() for x in inputs]


@onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 7, 24), (5, 24), (24,)])
@pytest.mark.parametrize("backend", LINEAR_BACKENDS)
def test_linear_equals_torch(
    use_backend: Callable[[str], None], backend: str, shape: tuple[int, ...], bias: bool
) -> None:
    use_backend(backend)
    inputs = _layer(shape=shape, bias=bias)
    _close(_grads(linear(*inputs), inputs), _grads(F.linear(*inputs), inputs), 1e-5)


@onednn
@pytest.mark.parametrize("backend", ["onednn", "widen"])
def test_linear_in_bf16_is_within_its_rounding(
    use_backend: Callable[[str], None], backend: str
) -> None:
    use_backend(backend)
    inputs = _layer(torch.bfloat16)
    exact = [x.detach().float().requires_grad_() for x in inputs]
    ours = [x.float() for x in _grads(linear(*inputs), inputs)]
    _close(ours, _grads(F.linear(*exact), exact), 2e-2)


@onednn
def test_linear_accepts_slices_and_strides(use_backend: Callable[[str], None]) -> None:
    use_backend("onednn")
    x, weight, bias = _layer()
    inputs = [x, weight, bias]
    ours = linear(x[:, ::2], weight[8:24], bias[8:24])
    _close(
        _grads(ours, inputs), _grads(F.linear(x[:, ::2], weight[8:24], bias[8:24]), inputs), 1e-5
    )


@onednn
@pytest.mark.parametrize("rows", [1, 2, 3, 20])
def test_transposed_weights_give_the_same_outputs(
    monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    """Only matrices at least as high as wide are transposed; a slice of one has gaps in memory."""
    monkeypatch.setattr(linear_module, "is_amd_cpu", lambda: True)
    torch.manual_seed(0)
    high, wide, bf16 = Linear(24, 40), Linear(40, 24), Linear(24, 24).to(torch.bfloat16)
    layers = nn.Sequential(high, wide, bf16)
    x = torch.randn(rows, 24)
    before = [high(x), high.forward_slice(x, 8, 32), wide(high(x))]
    values = {name: value.clone() for name, value in layers.state_dict().items()}
    linear_module.transpose_weights(layers)
    with torch.no_grad():
        after = [high(x), high.forward_slice(x, 8, 32), wide(high(x))]
    torch.testing.assert_close(after, [y.detach() for y in before], rtol=1e-5, atol=1e-6)
    assert [layer.weight.stride() for layer in (high, wide, bf16)] == [(1, 40), (40, 1), (24, 1)]
    assert all(torch.equal(value, values[name]) for name, value in layers.state_dict().items())


@onednn
def test_linear_has_a_second_derivative(use_backend: Callable[[str], None]) -> None:
    use_backend("onednn")

    def penalty(product: Callable[..., Tensor]) -> list[Tensor]:
        x, weight, bias = _layer()
        (x_grad,) = torch.autograd.grad(product(x, weight, bias).tanh().sum(), x, create_graph=True)
        return list(torch.autograd.grad(x_grad.square().sum(), [x, weight]))

    _close(penalty(linear), penalty(F.linear), 1e-5)


def test_linear_under_autocast_is_bf16_with_float32_gradients() -> None:
    inputs = _layer()
    with torch.autocast("cpu", torch.bfloat16):
        y = linear(*inputs)
    assert y.dtype == torch.bfloat16
    _close(_grads(y.float(), inputs), _grads(F.linear(*inputs), inputs), 2e-2)


@onednn
def test_linear_can_be_counted_vmapped_and_exported(use_backend: Callable[[str], None]) -> None:
    use_backend("onednn")
    layer, x = Linear(24, 40), torch.randn(5, 24)
    with FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() == 2 * 5 * 24 * 40
    assert Linear(24, 40, device="meta")(x.to("meta")).shape == (5, 40)
    batched = torch.func.vmap(layer)(torch.randn(2, 5, 24))
    assert batched.shape == (2, 5, 40)
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), layer(x))


@onednn
def test_environment_variable_overrides_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    for forced in LINEAR_BACKENDS:
        monkeypatch.setenv("SENSORIUM_KERNELS", forced)
        cpu_dispatch.linear_backend.cache_clear()
        assert cpu_dispatch.linear_backend(torch.float32) == forced
        assert cpu_dispatch.linear_backend(torch.bfloat16) == forced
    monkeypatch.setenv("SENSORIUM_KERNELS", "fastest")
    cpu_dispatch.linear_backend.cache_clear()
    with pytest.raises(SensoriumError, match="fastest"):
        cpu_dispatch.linear_backend(torch.float32)
    monkeypatch.delenv("SENSORIUM_KERNELS")
    assert cpu_dispatch.linear_backend(torch.float32) in LINEAR_BACKENDS
    cpu_dispatch.linear_backend.cache_clear()


def _heads(dtype: torch.dtype, t: int = 5, s: int = 5) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 3, n, 8).to(dtype).requires_grad_() for n in (t, s, s)]


MASKS = {
    "none": lambda: None,
    "keys": lambda: torch.tensor([1, 1, 1, 0, 0]).bool().expand(2, 1, 1, 5),
    "pairs": lambda: torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(2)) > 0.5,
}


@pytest.mark.parametrize("backend", ["onednn", "torch"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", MASKS)
def test_bf16_attention_is_within_its_rounding(
    use_backend: Callable[[str], None], backend: str, mask: str, causal: bool
) -> None:
    """Compared with float64; also with a causal and a boolean mask, which PyTorch refuses."""
    use_backend(backend)
    boolean = MASKS[mask]()
    inputs = _heads(torch.bfloat16)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    past = torch.ones(5, 5, dtype=torch.bool)
    past = past.tril() if causal else past
    both = past if boolean is None else boolean & past
    ours = _grads(attend(*inputs, causal=causal, mask=boolean), inputs)
    theirs = _grads(F.scaled_dot_product_attention(*exact, attn_mask=both), exact)
    _close([x.float() for x in ours], [x.float() for x in theirs], 3e-2)


@pytest.mark.parametrize("causal", [False, True])
def test_explicit_attention_passes_gradcheck(causal: bool) -> None:
    """In float64, where the comparison is exact."""
    mask = torch.ones(5, 5, dtype=torch.bool).tril() if causal else None
    assert torch.autograd.gradcheck(
        lambda q, k, v: ExplicitAttention.apply(q, k, v, mask, 0.3), _heads(torch.float64)
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", MASKS)
def test_self_attend_equals_attention_of_split_qkv(
    use_backend: Callable[[str], None], mask: str, causal: bool
) -> None:
    """Values and gradients, in float32, where explicit attention is used for training only."""
    use_backend("onednn")
    boolean = MASKS[mask]()
    qkv = torch.randn(2, 5, 3 * 24, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def expected(x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (3, 8)).transpose(1, 2) for part in x.chunk(3, -1))
        past = torch.ones(5, 5, dtype=torch.bool)
        past = past.tril() if causal else past
        output = F.scaled_dot_product_attention(
            q, k, v, attn_mask=past if boolean is None else past & boolean
        )
        return output.transpose(1, 2).flatten(2)

    ours = self_attend(qkv, 3, causal=causal, mask=boolean)
    _close(_grads(ours, [qkv]), _grads(expected(qkv), [qkv]), 1e-5)
    torch.testing.assert_close(
        self_attend(qkv.detach(), 3, causal=causal, mask=boolean), ours.detach()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fully_masked_query_returns_zero(
    use_backend: Callable[[str], None], dtype: torch.dtype
) -> None:
    use_backend("onednn")
    q, k, v = _heads(dtype)
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    mask[0, :, 2] = False
    output = attend(q, k, v, mask=mask)
    assert (output[0, :, 2] == 0).all()
    assert output.isfinite().all()
    assert (output[1] != 0).any()
    assert all(g.isfinite().all() for g in torch.autograd.grad(output.sum(), [q, k, v]))


def test_attention_with_scale_and_strides(use_backend: Callable[[str], None]) -> None:
    use_backend("onednn")
    q, k, v = (
        x.transpose(1, 2).contiguous().transpose(1, 2) for x in _heads(torch.bfloat16, t=1, s=9)
    )
    theirs = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), scale=0.2)
    _close([attend(q, k, v, scale=0.2).float()], [theirs], 2e-2)


def test_dropout_is_off_by_default() -> None:
    q, k, v = _heads(torch.float32)
    assert torch.equal(attend(q, k, v), attend(q, k, v))
    assert not torch.equal(attend(q, k, v, dropout=0.5), attend(q, k, v, dropout=0.5))


def test_configure_allocator_reports_success() -> None:
    assert cpu_dispatch.configure_allocator() in (True, False)

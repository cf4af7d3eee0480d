"""The fast ways give what torch's own operators give: values, gradients, and on every kind of tensor."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sensorium.errors import SensoriumError
from sensorium.nn import cpu_dispatch, sdpa
from sensorium.nn import linear as linear_module
from sensorium.nn.cpu_dispatch import LINEAR_BACKENDS
from sensorium.nn.linear import Linear, linear
from sensorium.nn.sdpa import attend, self_attend

onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)


@pytest.fixture
def take(monkeypatch):
    """Have all products done in a given way."""
    return lambda how: monkeypatch.setattr(linear_module, "linear_backend", lambda dtype: how)


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


def _layer(dtype=torch.float32, shape=(3, 7, 24), bias=True):
    torch.manual_seed(0)
    inputs = [torch.randn(shape), torch.randn(40, 24), *([torch.randn(40)] if bias else [])]
    return [x.to(dtype).requires_grad_() for x in inputs]


@onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 7, 24), (5, 24), (24,)])
@pytest.mark.parametrize("how", LINEAR_BACKENDS)
def test_linear_equals_torch(take, how, shape, bias):
    take(how)
    given = _layer(shape=shape, bias=bias)
    _close(_grads(linear(*given), given), _grads(F.linear(*given), given), 1e-5)


@onednn
@pytest.mark.parametrize("how", ["onednn", "widen"])
def test_linear_in_bf16_is_within_its_rounding(take, how):
    take(how)
    given = _layer(torch.bfloat16)
    exact = [x.detach().float().requires_grad_() for x in given]
    ours = [x.float() for x in _grads(linear(*given), given)]
    _close(ours, _grads(F.linear(*exact), exact), 2e-2)


@onednn
def test_linear_takes_slices_and_strides(take):
    take("onednn")
    x, weight, bias = _layer()
    given = [x, weight, bias]
    ours = linear(x[:, ::2], weight[8:24], bias[8:24])
    _close(_grads(ours, given), _grads(F.linear(x[:, ::2], weight[8:24], bias[8:24]), given), 1e-5)


@onednn
@pytest.mark.parametrize("rows", [1, 2, 3, 20])
def test_weights_laid_out_for_answering_say_the_same(monkeypatch, rows):
    """Turned over in memory where the matrix is at least as high as wide, on AMD alone; `part` is a slice with gaps."""
    monkeypatch.setattr(linear_module, "is_amd", lambda: True)
    torch.manual_seed(0)
    layers, x = (
        nn.Sequential(Linear(24, 40), Linear(40, 24), Linear(24, 24).to(torch.bfloat16)),
        torch.randn(rows, 24),
    )
    before = [layers[0](x), layers[0].part(x, 8, 32), layers[1](layers[0](x))]
    names = {name: value.clone() for name, value in layers.state_dict().items()}
    linear_module.transpose_weights(layers)
    with torch.no_grad():
        after = [layers[0](x), layers[0].part(x, 8, 32), layers[1](layers[0](x))]
    torch.testing.assert_close(after, [y.detach() for y in before], rtol=1e-5, atol=1e-6)
    assert [layer.weight.stride() for layer in layers] == [(1, 40), (40, 1), (24, 1)]
    assert all(torch.equal(value, names[name]) for name, value in layers.state_dict().items())


@onednn
def test_linear_has_a_second_derivative(take):
    take("onednn")

    def penalty(product):
        x, weight, bias = _layer()
        (inward,) = torch.autograd.grad(product(x, weight, bias).tanh().sum(), x, create_graph=True)
        return list(torch.autograd.grad(inward.square().sum(), [x, weight]))

    _close(penalty(linear), penalty(F.linear), 1e-5)


def test_linear_under_autocast_is_bf16_with_float32_gradients():
    given = _layer()
    with torch.autocast("cpu", torch.bfloat16):
        y = linear(*given)
    assert y.dtype == torch.bfloat16
    _close(_grads(y.float(), given), _grads(F.linear(*given), given), 2e-2)


@onednn
def test_onlookers_see_torch_s_own_operators(take):
    take("onednn")
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
def test_the_choice_is_fixed_and_can_be_overridden(monkeypatch):
    for forced in LINEAR_BACKENDS:
        monkeypatch.setenv("SENSORIUM_KERNELS", forced)
        cpu_dispatch.linear_backend.cache_clear()
        assert (
            cpu_dispatch.linear_backend(torch.float32)
            == cpu_dispatch.linear_backend(torch.bfloat16)
            == forced
        )
    monkeypatch.setenv("SENSORIUM_KERNELS", "fastest")
    cpu_dispatch.linear_backend.cache_clear()
    with pytest.raises(SensoriumError, match="fastest"):
        cpu_dispatch.linear_backend(torch.float32)
    monkeypatch.delenv("SENSORIUM_KERNELS")
    assert cpu_dispatch.linear_backend(torch.float32) in LINEAR_BACKENDS
    cpu_dispatch.linear_backend.cache_clear()


def _heads(dtype, t=5, s=5):
    torch.manual_seed(0)
    return [torch.randn(2, 3, n, 8).to(dtype).requires_grad_() for n in (t, s, s)]


MASKS = {
    "none": lambda: None,
    "keys": lambda: torch.tensor([1, 1, 1, 0, 0]).bool().expand(2, 1, 1, 5),
    "pairs": lambda: torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(2)) > 0.5,
}


@pytest.mark.parametrize("how", ["onednn", "torch"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", MASKS)
def test_attention_in_bf16_is_within_its_rounding(take, how, mask, causal):
    """Of float64. Also with both masks at once, which torch's operator alone refuses."""
    take(how)
    seen = MASKS[mask]()
    given = _heads(torch.bfloat16)
    exact = [x.detach().double().requires_grad_() for x in given]
    past = torch.ones(5, 5, dtype=torch.bool).tril() if causal else None
    both = past if seen is None else seen if past is None else seen & past
    ours = _grads(attend(*given, causal=causal, mask=seen), given)
    theirs = _grads(F.scaled_dot_product_attention(*exact, attn_mask=both), exact)
    _close([x.float() for x in ours], [x.float() for x in theirs], 3e-2)


@pytest.mark.parametrize("causal", [False, True])
def test_short_attention_has_the_right_gradient(causal):
    """In float64, where the comparison is exact."""
    seen = torch.ones(5, 5, dtype=torch.bool).tril() if causal else None
    given = _heads(torch.float64)
    assert torch.autograd.gradcheck(
        lambda q, k, v: sdpa._AttentionFunction.apply(q, k, v, seen, 0.3), given
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", MASKS)
def test_side_by_side_attention_equals_attention_of_three(take, mask, causal):
    """Values and gradients, in float32, where the short way is taken for training only."""
    take("onednn")
    seen = MASKS[mask]()
    qkv = torch.randn(2, 5, 3 * 24, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def of_three(x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (3, 8)).transpose(1, 2) for part in x.chunk(3, -1))
        past = (
            torch.ones(5, 5, dtype=torch.bool).tril()
            if causal
            else torch.ones(5, 5, dtype=torch.bool)
        )
        said = F.scaled_dot_product_attention(
            q, k, v, attn_mask=past if seen is None else past & seen
        )
        return said.transpose(1, 2).flatten(2)

    ours = self_attend(qkv, 3, causal=causal, mask=seen)
    _close(_grads(ours, [qkv]), _grads(of_three(qkv), [qkv]), 1e-5)
    torch.testing.assert_close(
        self_attend(qkv.detach(), 3, causal=causal, mask=seen), ours.detach()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_who_may_see_nothing_says_nothing(take, dtype):
    take("onednn")
    q, k, v = _heads(dtype)
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    mask[0, :, 2] = False
    said = attend(q, k, v, mask=mask)
    assert (said[0, :, 2] == 0).all()
    assert said.isfinite().all()
    assert (said[1] != 0).any()
    assert all(g.isfinite().all() for g in torch.autograd.grad(said.sum(), [q, k, v]))


def test_cross_attention_scale_and_strides(take):
    take("onednn")
    q, k, v = (
        x.transpose(1, 2).contiguous().transpose(1, 2) for x in _heads(torch.bfloat16, t=1, s=9)
    )
    theirs = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), scale=0.2)
    _close([attend(q, k, v, scale=0.2).float()], [theirs], 2e-2)


def test_dropout_only_where_asked():
    q, k, v = _heads(torch.float32)
    assert torch.equal(attend(q, k, v), attend(q, k, v))
    assert not torch.equal(attend(q, k, v, dropout=0.5), attend(q, k, v, dropout=0.5))


def test_settling_the_allocator_is_asked_for_and_answers():
    assert cpu_dispatch.configure_allocator() in (True, False)

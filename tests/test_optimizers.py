"""Tests of the optimizers, the learning-rate schedule and the moving average of the weights."""

import copy
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.training.optimizers import (
    EMA,
    MIN_BF16_SIZE,
    OPTIMIZERS,
    Lion,
    OptimizerConfig,
    build_optimizers,
    load_state_dict,
    lr_scale,
    orthogonalize,
    state_dict,
)

OPTIONS = OptimizerConfig(lr=0.02, weight_decay=0.3, betas=(0.9, 0.95))


class SmallModel(nn.Module):
    """Layers of every kind that optimizers tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.linear = nn.Linear(6, 5)
        self.norm = nn.LayerNorm(5)
        self.output = nn.Linear(5, 3)
        self.conv = nn.Conv1d(4, 2, 3)


def small_model() -> SmallModel:
    torch.manual_seed(0)
    return SmallModel()


def take_steps(net: nn.Module, step: Callable[[], object], count: int = 4) -> list[Tensor]:
    """Take steps with fixed gradients; return the weights afterwards."""
    for k in range(count):
        rng = torch.Generator().manual_seed(k)
        for p in net.parameters():
            p.grad = torch.randn(p.shape, generator=rng)
        step()
    return [p.detach().clone() for p in net.parameters()]


def step_all(optimizers: list[torch.optim.Optimizer]) -> None:
    for optimizer in optimizers:
        optimizer.step()


def make_step(net: nn.Module, name: str) -> Callable[[], None]:
    optimizers = build_optimizers(name, net, OPTIONS)
    return lambda: step_all(optimizers)


def groups(net: nn.Module) -> list[dict[str, object]]:
    return [
        {"params": [p for p in net.parameters() if p.ndim >= 2], "weight_decay": 0.3},
        {"params": [p for p in net.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("sgd", lambda g: torch.optim.SGD(g, lr=0.02, momentum=0.9)),
        ("adam", lambda g: torch.optim.Adam(g, lr=0.02, betas=(0.9, 0.95))),
        ("adamw", lambda g: torch.optim.AdamW(g, lr=0.02, betas=(0.9, 0.95))),
    ],
)
def test_step_equals_that_of_torch(
    name: str, reference: Callable[[object], torch.optim.Optimizer]
) -> None:
    ours, theirs = small_model(), small_model()
    for a, b in zip(
        take_steps(ours, make_step(ours, name)),
        take_steps(theirs, reference(groups(theirs)).step),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_lion_follows_its_paper() -> None:
    p = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    optimizer = Lion([{"params": [p], "weight_decay": 0.1}], lr=0.5, betas=(0.9, 0.99))
    x, m = p.detach().double().clone(), torch.zeros(1, 2, dtype=torch.double)
    for g in (torch.tensor([[3.0, -1.0]]), torch.tensor([[-40.0, 0.5]])):
        p.grad = g
        optimizer.step()
        x = x - 0.5 * ((0.9 * m + 0.1 * g.double()).sign() + 0.1 * x)
        m = 0.99 * m + 0.01 * g.double()
    torch.testing.assert_close(p.detach().double(), x, rtol=1e-6, atol=1e-6)


def test_muon_updates_matrices_and_adamw_the_rest() -> None:
    net = small_model()
    muon, adamw = build_optimizers("muon", net, OPTIONS)
    assert [p.shape for g in muon.param_groups for p in g["params"]] == [
        layer.weight.shape for layer in (net.linear, net.output, net.conv)
    ]
    rest = {id(p) for g in adamw.param_groups for p in g["params"]}
    assert {id(net.embedding.weight), id(net.linear.bias), id(net.norm.weight)} <= rest
    before = net.linear.weight.detach().clone()
    net.linear.weight.grad = torch.randn(5, 6)
    muon.step()
    step = before * (1 - OPTIONS.lr * OPTIONS.weight_decay) - net.linear.weight.detach()
    values = torch.linalg.svdvals(
        step / (OPTIONS.lr * 0.2 * math.sqrt(6))
    )  # an orthogonal step, as large as AdamW's
    assert values.min() > 0.6
    assert values.max() < 1.3


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("shape", [(160, 288), (288, 160), (32, 48)])
def test_orthogonalized_step_in_either_precision(
    shape: tuple[int, int], bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sensorium.training.optimizers.has_bf16_matmul", lambda: bf16)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    direction = orthogonalize(x)
    assert (direction.dtype == torch.bfloat16) == (bf16 and min(shape) >= MIN_BF16_SIZE)
    values = torch.linalg.svdvals(direction.float())
    assert values.min() > 0.6
    assert values.max() < 1.3
    torch.testing.assert_close(
        (direction.float() * x).sum(), torch.linalg.svdvals(x).sum(), rtol=0.2, atol=0
    )  # along x


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_vectors_have_no_weight_decay(name: str) -> None:
    net = small_model()
    before = copy.deepcopy(net)
    optimizers = build_optimizers(name, net, OPTIONS)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    for optimizer in optimizers:
        optimizer.step()
    for (param_name, p), q in zip(net.named_parameters(), before.parameters(), strict=True):
        if p.ndim < 2:
            assert torch.equal(p, q), param_name
        elif name != "adam":  # its decay is part of the gradient, and scaled like it
            assert p.norm() < q.norm(), param_name


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_restored_state_continues_exactly(name: str) -> None:
    reference = small_model()
    reference_step = make_step(reference, name)
    take_steps(reference, reference_step, 3)
    net = small_model()
    optimizers = build_optimizers(name, net, OPTIONS)
    take_steps(net, lambda: step_all(optimizers), 3)
    flat = {k: v.clone() for k, v in state_dict({"model": optimizers}).items()}
    other = copy.deepcopy(net)
    restored = build_optimizers(name, other, OPTIONS)
    load_state_dict({"model": restored}, flat)
    for a, b in zip(
        take_steps(reference, reference_step, 3),
        take_steps(other, lambda: step_all(restored), 3),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_muon_and_adamw_have_their_own_learning_rates() -> None:
    muon, adamw = build_optimizers("muon", small_model(), OPTIONS)
    assert muon.param_groups[0]["peak_lr"] == OPTIONS.lr
    assert adamw.param_groups[0]["peak_lr"] == pytest.approx(OPTIONS.lr / 3)


def test_restored_state_has_the_layout_of_its_parameter() -> None:
    """Fused kernels read both in memory order, so another layout would be misread."""
    net = nn.Conv2d(3, 4, 3)
    net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizers = build_optimizers("adamw", net, OPTIONS)
    take_steps(net, optimizers[0].step, 1)
    restored = build_optimizers("adamw", net, OPTIONS)
    load_state_dict(
        {"model": restored},
        {k: v.contiguous() for k, v in state_dict({"model": optimizers}).items()},
    )
    assert restored[0].state[net.weight]["exp_avg"].stride() == net.weight.stride()


def test_frozen_parameters_are_not_optimized() -> None:
    net = small_model()
    net.linear.requires_grad_(False)
    optimized = {
        id(p)
        for o in build_optimizers("adamw", net, OPTIONS)
        for g in o.param_groups
        for p in g["params"]
    }
    assert not optimized & {id(p) for p in net.linear.parameters()}
    with pytest.raises(SensoriumError, match="frozen"):
        build_optimizers("adamw", nn.Linear(2, 2).requires_grad_(False), OPTIONS)
    with pytest.raises(
        SensoriumError,
        match="--optimizer 'adamm' is not one of adamw, adam, sgd, lion, muon",
    ):
        build_optimizers("adamm", net, OPTIONS)


def test_learning_rate_warms_up_and_decays() -> None:
    rates = [lr_scale(k, 100, 0.1) for k in range(101)]
    assert rates[:10] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[99] > 0
    assert lr_scale(0, 10, 0.0) == 1.0
    assert lr_scale(9, 10, 1.0) == 1.0
    assert lr_scale(0, 1, 0.5) == 1.0


def test_ema_warms_up_and_can_be_applied() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 0.0)
    ema, expected = EMA(net, 0.9), 0.0
    for k in range(40):
        nn.init.constant_(net.weight, float(k + 1))
        ema.update(k)
        decay = min(0.9, (k + 1) / (k + 10))
        expected = decay * expected + (1 - decay) * (k + 1)
    assert ema.weights["weight"].item() == pytest.approx(expected, rel=1e-5)
    with ema.applied():
        assert net.weight.item() == pytest.approx(expected, rel=1e-5)
    assert net.weight.item() == 40.0
    assert ema.weights["weight"].item() == pytest.approx(expected, rel=1e-5)

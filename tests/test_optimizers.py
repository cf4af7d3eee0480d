"""Optimisers beside torch's own or their paper's update written out; the schedule's values; the moving average."""

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


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(7, 6), nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3), nn.Conv1d(4, 2, 3)
    )


def learn(net: nn.Module, step: Callable[[], object], times: int = 4) -> list[Tensor]:
    """Gradients that depend on nothing but the step; the weights afterwards."""
    for k in range(times):
        rng = torch.Generator().manual_seed(k)
        for p in net.parameters():
            p.grad = torch.randn(p.shape, generator=rng)
        step()
    return [p.detach().clone() for p in net.parameters()]


def steps(net: nn.Module, name: str) -> Callable[[], None]:
    several = build_optimizers(name, net, OPTIONS)
    return lambda: [o.step() for o in several][0]


def groups(net: nn.Module) -> list[dict[str, object]]:
    return [
        {"params": [p for p in net.parameters() if p.ndim >= 2], "weight_decay": 0.3},
        {"params": [p for p in net.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize(
    "name, reference",
    [
        ("sgd", lambda g: torch.optim.SGD(g, lr=0.02, momentum=0.9)),
        ("adam", lambda g: torch.optim.Adam(g, lr=0.02, betas=(0.9, 0.95))),
        ("adamw", lambda g: torch.optim.AdamW(g, lr=0.02, betas=(0.9, 0.95))),
    ],
)
def test_it_steps_as_torch_does(
    name: str, reference: Callable[[object], torch.optim.Optimizer]
) -> None:
    ours, theirs = model(), model()
    for a, b in zip(
        learn(ours, steps(ours, name)), learn(theirs, reference(groups(theirs)).step), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_lion_is_its_paper_written_out() -> None:
    p = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    optimizer = Lion([{"params": [p], "weight_decay": 0.1}], lr=0.5, betas=(0.9, 0.99))
    x, m = p.detach().double().clone(), torch.zeros(1, 2, dtype=torch.double)
    for g in (torch.tensor([[3.0, -1.0]]), torch.tensor([[-40.0, 0.5]])):
        p.grad = g
        optimizer.step()
        x = x - 0.5 * ((0.9 * m + 0.1 * g.double()).sign() + 0.1 * x)
        m = 0.99 * m + 0.01 * g.double()
    torch.testing.assert_close(p.detach().double(), x, rtol=1e-6, atol=1e-6)


def test_muon_takes_the_maps_and_adamw_the_rest() -> None:
    net = model()
    muon, adamw = build_optimizers("muon", net, OPTIONS)
    assert [p.shape for g in muon.param_groups for p in g["params"]] == [
        net[i].weight.shape for i in (1, 3, 4)
    ]
    rest = {id(p) for g in adamw.param_groups for p in g["params"]}
    assert {id(net[0].weight), id(net[1].bias), id(net[2].weight)} <= rest
    before = net[1].weight.detach().clone()
    net[1].weight.grad = torch.randn(5, 6)
    muon.step()
    step = before * (1 - OPTIONS.lr * OPTIONS.weight_decay) - net[1].weight.detach()
    values = torch.linalg.svdvals(
        step / (OPTIONS.lr * 0.2 * math.sqrt(6))
    )  # an orthogonal step, as large as AdamW's
    assert values.min() > 0.6
    assert values.max() < 1.3


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("shape", [(160, 288), (288, 160), (32, 48)])
def test_a_step_is_orthogonal_in_either_precision(
    shape: tuple[int, int], bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sensorium.training.optimizers.multiplies_bf16", lambda: bf16)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    way = orthogonalize(x)
    assert (way.dtype == torch.bfloat16) == (bf16 and min(shape) >= MIN_BF16_SIZE)
    values = torch.linalg.svdvals(way.float())
    assert values.min() > 0.6
    assert values.max() < 1.3
    torch.testing.assert_close(
        (way.float() * x).sum(), torch.linalg.svdvals(x).sum(), rtol=0.2, atol=0
    )  # along x


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_has_one_axis_is_never_decayed(name: str) -> None:
    net = model()
    still = copy.deepcopy(net)
    several = build_optimizers(name, net, OPTIONS)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    for optimizer in several:
        optimizer.step()
    for (which, p), q in zip(net.named_parameters(), still.parameters(), strict=True):
        if p.ndim < 2:
            assert torch.equal(p, q), which
        elif name != "adam":  # whose decay is part of the gradient, and scaled as it is
            assert p.norm() < q.norm(), which


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_remembered_goes_on_exactly(name: str) -> None:
    whole = model()
    straight = steps(whole, name)
    learn(whole, straight, 3)
    net = model()
    several = build_optimizers(name, net, OPTIONS)
    learn(net, lambda: [o.step() for o in several], 3)
    flat = {k: v.clone() for k, v in state_dict({"model": several}).items()}
    other = copy.deepcopy(net)
    again = build_optimizers(name, other, OPTIONS)
    load_state_dict({"model": again}, flat)
    for a, b in zip(
        learn(whole, straight, 3), learn(other, lambda: [o.step() for o in again], 3), strict=True
    ):
        assert torch.equal(a, b)


def test_each_part_keeps_its_own_rate() -> None:
    """Muon's other half goes slower; a schedule scales both."""
    muon, adamw = build_optimizers("muon", model(), OPTIONS)
    assert muon.param_groups[0]["top"] == OPTIONS.lr
    assert adamw.param_groups[0]["top"] == pytest.approx(OPTIONS.lr / 3)


def test_memory_is_laid_out_as_its_parameter() -> None:
    """The fused kernels walk both in memory order: one laid out otherwise would be read wrongly."""
    net = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    several = build_optimizers("adamw", net, OPTIONS)
    learn(net, several[0].step, 1)
    again = build_optimizers("adamw", net, OPTIONS)
    load_state_dict(
        {"model": again}, {k: v.contiguous() for k, v in state_dict({"model": several}).items()}
    )
    assert again[0].state[net.weight]["exp_avg"].stride() == net.weight.stride()


def test_frozen_parameters_are_left_alone() -> None:
    net = model()
    net[1].requires_grad_(False)
    held = {
        id(p)
        for o in build_optimizers("adamw", net, OPTIONS)
        for g in o.param_groups
        for p in g["params"]
    }
    assert not held & {id(p) for p in net[1].parameters()}
    with pytest.raises(SensoriumError, match="frozen"):
        build_optimizers("adamw", nn.Linear(2, 2).requires_grad_(False), OPTIONS)
    with pytest.raises(
        SensoriumError,
        match="no optimizer is called 'adamm'; there are adamw, adam, sgd, lion, muon",
    ):
        build_optimizers("adamm", net, OPTIONS)


def test_the_rate_goes_up_in_a_line_and_down_in_a_cosine() -> None:
    rates = [lr_scale(k, 100, 0.1) for k in range(101)]
    assert rates[:10] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    assert all(a > b for a, b in itertools.pairwise(rates))
    assert rates[99] > 0
    assert lr_scale(0, 10, 0.0) == 1.0
    assert lr_scale(9, 10, 1.0) == 1.0
    assert lr_scale(0, 1, 0.5) == 1.0


def test_the_average_warms_up_and_can_be_worn() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 0.0)
    average, wanted = EMA(net, 0.9), 0.0
    for k in range(40):
        nn.init.constant_(net.weight, float(k + 1))
        average.update(k)
        decay = min(0.9, (k + 1) / (k + 10))
        wanted = decay * wanted + (1 - decay) * (k + 1)
    assert average.weights["weight"].item() == pytest.approx(wanted, rel=1e-5)
    with average.applied():
        assert net.weight.item() == pytest.approx(wanted, rel=1e-5)
    assert net.weight.item() == 40.0
    assert average.weights["weight"].item() == pytest.approx(wanted, rel=1e-5)

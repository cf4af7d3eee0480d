"""What turns gradients into a step: optimisers by name, the learning rate over time, the average of the weights."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sensorium.errors import SensoriumError
from sensorium.models.lora import layer_depths
from sensorium.nn.cpu_dispatch import has_bf16_matmul

ParamGroups = list[dict[str, Any]]
MIN_BF16_SIZE = 128  # from this short side on, a product in bf16 wins back what it costs to begin


@dataclass(frozen=True)
class OptimizerConfig:
    """What every optimiser is told: its top learning rate, the decay of matrices, the two rates of forgetting."""

    lr: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = 1.0  # of a block's rate, for the block below it


def build_optimizers(name: str, module: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """The optimiser of that name over what `module` trains: one, or two that each see their part of the parameters.

    What has fewer than two axes (scales, biases, norms, temperatures) is never decayed.
    """
    if name not in OPTIMIZERS:
        raise SensoriumError(f"no optimizer is called {name!r}; there are {', '.join(OPTIMIZERS)}")
    params: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
    if not params:
        raise SensoriumError(
            f"{type(module).__name__} has nothing to train: every parameter is frozen"
        )
    several = OPTIMIZERS[name](module, params, config)
    if config.layer_decay != 1:
        for optimizer in several:
            optimizer.param_groups[:] = layer_wise_lr(
                optimizer.param_groups, layer_depths(module), config.layer_decay
            )
    for group in (group for optimizer in several for group in optimizer.param_groups):
        group["top"] = group["lr"]  # of which a schedule gives each step its share
    return several


def param_groups(params: list[Tensor], weight_decay: float) -> ParamGroups:
    """Two groups: matrices, with decay, and the rest, without; an empty one is left out."""
    wide = {"params": [p for p in params if p.ndim >= 2], "weight_decay": weight_decay}
    thin = {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0}
    return [g for g in (wide, thin) if g["params"]]


def layer_wise_lr(
    groups: ParamGroups, depths: Mapping[Tensor, int], layer_decay: float
) -> ParamGroups:
    """The groups split so that what lies n blocks deep learns at layer_decay^n of its group's rate."""
    return [
        {**group, "lr": group["lr"] * layer_decay**n, "params": same}
        for group in groups
        for n in sorted({depths.get(p, 0) for p in group["params"]})
        if (same := [p for p in group["params"] if depths.get(p, 0) == n])
    ]


class Lion(Optimizer):
    """Steps of one size in the direction of the sign of the momentum (Chen et al. 2023, "Symbolic Discovery").

    It wants about a third of AdamW's learning rate and three times its decay; half of AdamW's memory.
    """

    def __init__(self, params: ParamGroups, lr: float, betas: tuple[float, float] = (0.9, 0.99)):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update; there is no closure to call twice."""
        for group in self.param_groups:
            lr, (b1, b2) = group["lr"], group["betas"]
            for p in (p for p in group["params"] if p.grad is not None):
                slow = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1 - lr * group["weight_decay"]).add_(
                    slow.lerp(p.grad, 1 - b1).sign_(), alpha=-lr
                )
                slow.lerp_(p.grad, 1 - b2)


class Muon(Optimizer):
    """Momentum whose step is made orthogonal: every direction of a weight matrix moves alike (Jordan et al. 2024).

    For weights of two or more axes; a convolution counts as [out, everything else]. The step is scaled to the size of
    one of AdamW's (Liu et al. 2025), so rates and decay carry over.
    """

    def __init__(self, params: ParamGroups, lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update; there is no closure to call twice."""
        for group in self.param_groups:
            lr, keep = group["lr"], group["momentum"]
            for p in (p for p in group["params"] if p.grad is not None):
                slow = self.state[p].setdefault("momentum", torch.zeros_like(p))
                slow.lerp_(p.grad, 1 - keep)
                way = orthogonalize(p.grad.lerp(slow, keep).flatten(1))
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(way.view(p.shape), alpha=-lr * 0.2 * max(way.shape) ** 0.5)


def orthogonalize(x: Float[Tensor, "m n"], steps: int = 5) -> Float[Tensor, "m n"]:
    """Nearly the orthogonal matrix closest to x: singular values near 1 by an odd polynomial (Newton-Schulz)."""
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    x = x.bfloat16() if len(x) >= MIN_BF16_SIZE and has_bf16_matmul() else x
    for _ in range(steps):
        square = x @ x.T
        x = torch.addmm(
            x, torch.addmm(square, square, square, beta=-4.775, alpha=2.0315), x, beta=3.4445
        )
    return x.T if tall else x


def _sgd(module: nn.Module, params: list[Tensor], config: OptimizerConfig) -> list[Optimizer]:
    return [SGD(param_groups(params, config.weight_decay), lr=config.lr, momentum=config.betas[0])]


def _adam(module: nn.Module, params: list[Tensor], config: OptimizerConfig) -> list[Optimizer]:
    return [
        Adam(
            param_groups(params, config.weight_decay), lr=config.lr, betas=config.betas, fused=True
        )
    ]


def _adamw(module: nn.Module, params: list[Tensor], config: OptimizerConfig) -> list[Optimizer]:
    return [
        AdamW(
            param_groups(params, config.weight_decay), lr=config.lr, betas=config.betas, fused=True
        )
    ]


def _lion(module: nn.Module, params: list[Tensor], config: OptimizerConfig) -> list[Optimizer]:
    return [Lion(param_groups(params, config.weight_decay), lr=config.lr, betas=config.betas)]


def _muon(module: nn.Module, params: list[Tensor], config: OptimizerConfig) -> list[Optimizer]:
    """Muon for the weights of linear layers and convolutions, AdamW at a third of the rate for everything else."""
    maps = {
        id(m.weight)
        for m in module.modules()
        if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    }
    mapping, rest = [p for p in params if id(p) in maps], [p for p in params if id(p) not in maps]
    both: list[Optimizer] = []
    if mapping:
        both.append(Muon([{"params": mapping, "weight_decay": config.weight_decay}], lr=config.lr))
    return both + _adamw(module, rest, replace(config, lr=config.lr / 3)) if rest else both


OPTIMIZERS: dict[str, Callable[[nn.Module, list[Tensor], OptimizerConfig], list[Optimizer]]] = {
    "adamw": _adamw,
    "adam": _adam,
    "sgd": _sgd,
    "lion": _lion,
    "muon": _muon,
}


def lr_scale(step: int, total_steps: int, warmup_ratio: float) -> float:
    """The part of the learning rate that step 0 .. steps - 1 gets: up in a line, then down a half cosine to 0.

    warmup_ratio: the part of all steps that goes up, 0 to 1. The first step gets more than 0; only step `steps` would get 0.
    """
    up = round(warmup_ratio * total_steps)
    if step < up:
        return (step + 1) / up
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - up) / max(1, total_steps - up))))


class EMA:
    """A moving average of a model's weights (EMA), which is often the better model; it starts quickly."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self._params = dict(model.named_parameters())
        self.weights = {name: p.detach().clone() for name, p in self._params.items()}

    def update(self, step: int) -> None:
        """After update k (from 0): move towards the weights, by at least 1 - decay, in the first steps by more."""
        towards = 1 - min(self.decay, (step + 1) / (step + 10))
        get_ema_multi_avg_fn(1 - towards)([*self.weights.values()], [*self._params.values()], step)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """For a while the model has the averaged weights; then its own again."""
        self._swap_weights()
        try:
            yield
        finally:
            self._swap_weights()

    @torch.no_grad()
    def _swap_weights(self) -> None:
        for name, p in self._params.items():
            kept = p.detach().clone()
            p.copy_(self.weights[name])
            self.weights[name].copy_(kept)


def state_dict(optimizers: Mapping[str, list[Optimizer]]) -> dict[str, Tensor]:
    """Everything the optimisers remember, flat: player/which/parameter/what -> tensor."""
    return {
        f"{player}/{i}/{p}/{what}": value
        for player, several in optimizers.items()
        for i, optimizer in enumerate(several)
        for p, seen in optimizer.state_dict()["state"].items()
        for what, value in seen.items()
        if isinstance(value, Tensor)
    }


def load_state_dict(
    optimizers: Mapping[str, list[Optimizer]], flat_state: Mapping[str, Tensor]
) -> None:
    """Put back what `memory` gave. Each tensor gets memory of its own, laid out as its parameter is."""
    for player, several in optimizers.items():
        for i, optimizer in enumerate(several):
            params = [p for group in optimizer.param_groups for p in group["params"]]
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in flat_state.items():
                whose, which, p, what = name.split("/")
                if (whose, which) == (player, str(i)):
                    like = params[int(p)] if value.shape == params[int(p)].shape else value
                    state.setdefault(int(p), {})[what] = torch.empty_like(
                        like, dtype=value.dtype
                    ).copy_(value)
            optimizer.load_state_dict(
                {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
            )

"""Optimizers by name, the learning-rate schedule, and the moving average of the weights."""

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
MIN_BF16_SIZE = 128  # shorter side from which a bf16 matrix product is faster than fp32


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of every optimizer.

    Attributes:
        lr: peak learning rate.
        weight_decay: weight decay of matrices.
        betas: decay of the running averages of gradients and squared gradients.
        layer_decay: layer-wise learning-rate decay: factor per block below the last one.
    """

    lr: float
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = 1.0


def build_optimizers(name: str, module: nn.Module, config: OptimizerConfig) -> list[Optimizer]:
    """Return the optimizers of a module: one, or two that each update a part of the parameters.

    Parameters with fewer than two axes (scales, biases, temperatures) have no weight decay.

    Args:
        name: one of `OPTIMIZERS`.
        module: parameters that require a gradient are trained.
        config: the settings.

    Raises:
        SensoriumError: the name is unknown, or every parameter is frozen.
    """
    if name not in OPTIMIZERS:
        raise SensoriumError(f"--optimizer {name!r} is not one of {', '.join(OPTIMIZERS)}.")
    params: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
    if not params:
        raise SensoriumError(
            f"{type(module).__name__} has nothing to train: every parameter is frozen. Train at "
            "least one part."
        )
    optimizers = OPTIMIZERS[name](module, params, config)
    for optimizer in optimizers:
        if config.layer_decay != 1:
            optimizer.param_groups[:] = layer_wise_lr(
                optimizer.param_groups, layer_depths(module), config.layer_decay
            )
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]  # the schedule scales it
    return optimizers


def param_groups(params: list[Tensor], weight_decay: float) -> ParamGroups:
    """Return the groups of matrices, with weight decay, and of the rest, without."""
    matrices = {"params": [p for p in params if p.ndim >= 2], "weight_decay": weight_decay}
    vectors = {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0}
    return [group for group in (matrices, vectors) if group["params"]]


def layer_wise_lr(
    groups: ParamGroups, depths: Mapping[Tensor, int], layer_decay: float
) -> ParamGroups:
    """Split groups by depth, with learning rate lr * layer_decay^depth.

    Args:
        groups: parameter groups.
        depths: blocks between a parameter and the output; 0 where missing.
        layer_decay: factor per block.
    """
    split_groups: ParamGroups = []
    for group in groups:
        by_depth: dict[int, list[Tensor]] = {}
        for p in group["params"]:
            by_depth.setdefault(depths.get(p, 0), []).append(p)
        for depth, params in sorted(by_depth.items()):
            lr = group["lr"] * layer_decay**depth
            split_groups.append({**group, "lr": lr, "params": params})
    return split_groups


class Lion(Optimizer):
    """Lion: steps of constant size along the sign of the momentum.

    Needs about a third of AdamW's learning rate and three times its weight decay; takes half of its
    memory. Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms".

    Args:
        params: parameter groups.
        lr: learning rate.
        betas: decay of the momentum in the step, and in the state.
    """

    def __init__(self, params: ParamGroups, lr: float, betas: tuple[float, float] = (0.9, 0.99)):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the parameters; return the loss of `closure`, if there is one."""
        loss = _call_closure(closure)
        for group in self.param_groups:
            lr = group["lr"]
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                direction = momentum.lerp(p.grad, 1 - beta1).sign_()
                p.mul_(1 - lr * group["weight_decay"]).add_(direction, alpha=-lr)
                momentum.lerp_(p.grad, 1 - beta2)
        return loss


class Muon(Optimizer):
    """Muon: momentum whose step is orthogonalized, so all directions of a matrix move alike.

    For weights of two or more axes; a convolution counts as [out, everything else]. The step is
    scaled to the size of AdamW's, so its learning rate and weight decay carry over. Jordan et al.
    2024, "Muon"; scaling: Liu et al. 2025, "Muon is Scalable for LLM Training". torch.optim.Muon
    takes no convolutions and always computes in bf16.

    Args:
        params: parameter groups.
        lr: learning rate.
        momentum: decay of the momentum (Nesterov).
    """

    def __init__(self, params: ParamGroups, lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the parameters; return the loss of `closure`, if there is one."""
        loss = _call_closure(closure)
        for group in self.param_groups:
            lr, decay = group["lr"], group["momentum"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - decay)
                direction = orthogonalize(p.grad.lerp(momentum, decay).flatten(1))
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(direction.view(p.shape), alpha=-lr * 0.2 * max(direction.shape) ** 0.5)
        return loss


def orthogonalize(x: Float[Tensor, "m n"], steps: int = 5) -> Float[Tensor, "m n"]:
    """Return nearly the closest orthogonal matrix, by Newton-Schulz iterations.

    An odd polynomial drives all singular values towards 1 (to about 0.7 to 1.2).

    Args:
        x: the matrix.
        steps: iterations.
    """
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    x = x / (x.norm() + 1e-7)
    if len(x) >= MIN_BF16_SIZE and has_bf16_matmul():
        x = x.bfloat16()
    for _ in range(steps):
        gram = x @ x.T
        polynomial = torch.addmm(gram, gram, gram, beta=-4.775, alpha=2.0315)
        x = torch.addmm(x, polynomial, x, beta=3.4445)
    return x.T if is_tall else x


def _call_closure(closure: Callable[[], float] | None) -> float | None:
    """Return the loss that a closure computes, with gradients."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _sgd(_: nn.Module, params: list[Tensor], config: OptimizerConfig) -> list[Optimizer]:
    """Return SGD with momentum."""
    groups = param_groups(params, config.weight_decay)
    return [SGD(groups, lr=config.lr, momentum=config.betas[0])]


def _adam(_: nn.Module, params: list[Tensor], config: OptimizerConfig) -> list[Optimizer]:
    """Return Adam."""
    groups = param_groups(params, config.weight_decay)
    return [Adam(groups, lr=config.lr, betas=config.betas, fused=True)]


def _adamw(_: nn.Module, params: list[Tensor], config: OptimizerConfig) -> list[Optimizer]:
    """Return AdamW."""
    groups = param_groups(params, config.weight_decay)
    return [AdamW(groups, lr=config.lr, betas=config.betas, fused=True)]


def _lion(_: nn.Module, params: list[Tensor], config: OptimizerConfig) -> list[Optimizer]:
    """Return Lion."""
    groups = param_groups(params, config.weight_decay)
    return [Lion(groups, lr=config.lr, betas=config.betas)]


def _muon(module: nn.Module, params: list[Tensor], config: OptimizerConfig) -> list[Optimizer]:
    """Return Muon for linear and convolution weights, and AdamW at lr / 3 for the rest."""
    matrix_ids = {
        id(layer.weight)
        for layer in module.modules()
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    }
    matrices = [p for p in params if id(p) in matrix_ids]
    rest = [p for p in params if id(p) not in matrix_ids]
    optimizers: list[Optimizer] = []
    if matrices:
        group = {"params": matrices, "weight_decay": config.weight_decay}
        optimizers.append(Muon([group], lr=config.lr))
    if rest:
        optimizers += _adamw(module, rest, replace(config, lr=config.lr / 3))
    return optimizers


OPTIMIZERS: dict[str, Callable[[nn.Module, list[Tensor], OptimizerConfig], list[Optimizer]]] = {
    "adamw": _adamw,
    "adam": _adam,
    "sgd": _sgd,
    "lion": _lion,
    "muon": _muon,
}


def lr_scale(step: int, total_steps: int, warmup_ratio: float) -> float:
    """Return the factor of the learning rate: linear warm-up, then cosine decay to 0.

    Args:
        step: 0 to total_steps - 1; the first step gets more than 0, and so does the last.
        total_steps: steps of the run.
        warmup_ratio: fraction of the steps with linear warm-up, 0 to 1.
    """
    warmup_steps = round(warmup_ratio * total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    decay_steps = max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup_steps) / decay_steps)))


class EMA:
    """An exponential moving average of a model's weights.

    Args:
        model: the model.
        decay: decay of the average; smaller in the first steps.

    Attributes:
        weights: the averaged parameters by name.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self._params = dict(model.named_parameters())
        self.weights = {name: p.detach().clone() for name, p in self._params.items()}

    def update(self, step: int) -> None:
        """Move the average towards the weights, after step `step` (from 0)."""
        weight = 1 - min(self.decay, (step + 1) / (step + 10))
        update_average = get_ema_multi_avg_fn(1 - weight)
        update_average([*self.weights.values()], [*self._params.values()], step)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the averaged weights within a `with` block."""
        self._swap_weights()
        try:
            yield
        finally:
            self._swap_weights()

    @torch.no_grad()
    def _swap_weights(self) -> None:
        """Exchange the weights of the model and their average."""
        for name, p in self._params.items():
            current = p.detach().clone()
            p.copy_(self.weights[name])
            self.weights[name].copy_(current)


def state_dict(optimizers: Mapping[str, list[Optimizer]]) -> dict[str, Tensor]:
    """Return the state of all optimizers as tensors by PLAYER/OPTIMIZER/PARAMETER/NAME."""
    tensors: dict[str, Tensor] = {}
    for player, player_optimizers in optimizers.items():
        for i, optimizer in enumerate(player_optimizers):
            for param_index, param_state in optimizer.state_dict()["state"].items():
                for name, value in param_state.items():
                    if isinstance(value, Tensor):
                        tensors[f"{player}/{i}/{param_index}/{name}"] = value
    return tensors


def load_state_dict(
    optimizers: Mapping[str, list[Optimizer]], tensors: Mapping[str, Tensor]
) -> None:
    """Restore the result of `state_dict`.

    Each tensor is copied into the memory layout of its parameter, as fused kernels require.
    """
    for player, player_optimizers in optimizers.items():
        for i, optimizer in enumerate(player_optimizers):
            params = [p for group in optimizer.param_groups for p in group["params"]]
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                key_player, key_optimizer, param_index, name = key.split("/")
                if (key_player, key_optimizer) != (player, str(i)):
                    continue
                param = params[int(param_index)]
                like = param if value.shape == param.shape else value
                copied = torch.empty_like(like, dtype=value.dtype).copy_(value)
                state.setdefault(int(param_index), {})[name] = copied
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})

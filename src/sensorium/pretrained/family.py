"""What a pretrained model family consists of, and how its weights are loaded.

A family is one `PretrainedFamily` in a file of its own, registered in `families.py`. For each, a
test checks the round trip of the weights, theirs -> ours -> theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from sensorium.errors import SensoriumError
from sensorium.modalities.base import Modality
from sensorium.pretrained.weight_files import WeightFiles
from sensorium.pretrained.weight_mapping import WeightMapping, load_into

MAX_GROWTH_FACTOR = 2  # parameters of a model per value in its files
FREE_PARAMETERS = 10_000_000
ModelConfig = Mapping[str, Any]
Verbs = Mapping[str, Callable[..., Any]]
Preprocessing = Mapping[str, Modality]


@dataclass(frozen=True)
class PretrainedFamily:
    """One pretrained architecture in one layout of weight names.

    Attributes:
        name: Unique name.
        detect_config: Opened files -> the family's config, or None if they belong to another
            family. A layout without a config (torchvision, timm) is recognized by names and shapes.
        build_module: Config -> our module; its initial weights are all overwritten.
        map_weights: Config -> the mappings of every weight. Tensors that occur in no mapping are
            refused, unless `unused_tensors` matches them.
        preprocessing: Config and files -> the settings of the inputs ("image", "text"), including
            the tokenizer.
        build_verbs: Module and preprocessing -> embed, generate or predict on raw values.
        unused_tensors: Patterns of tensors that hold nothing learned.
        custom_load: Loads the weights where mappings cannot express it; None: `load_into`.
    """

    name: str
    detect_config: Callable[[WeightFiles], ModelConfig | None]
    build_module: Callable[[ModelConfig], nn.Module]
    map_weights: Callable[[ModelConfig], Iterable[WeightMapping]]
    preprocessing: Callable[[ModelConfig, WeightFiles], Preprocessing]
    build_verbs: Callable[[nn.Module, Preprocessing], Verbs]
    unused_tensors: tuple[str, ...] = ()
    custom_load: Callable[[nn.Module, ModelConfig, WeightFiles], None] | None = None


def load_pretrained(
    family: PretrainedFamily,
    config: ModelConfig,
    weight_files: WeightFiles,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Build a family's module with pretrained weights.

    Args:
        family: The family.
        config: Its config of the files.
        weight_files: The opened files.
        dtype: Type of the weights in memory.

    Raises:
        SensoriumError: If the files do not fit the config, see `load_into`.
    """
    _check_num_parameters(family, config, weight_files)
    with torch.random.fork_rng(), skip_init():
        module = family.build_module(config).to(dtype)
    if family.custom_load is not None:
        family.custom_load(module, config, weight_files)
        return module
    load_into(
        module,
        weight_files.tensors,
        family.map_weights(config),
        unused_tensors=family.unused_tensors,
        path=str(weight_files.path),
    )
    return module


def _check_num_parameters(
    family: PretrainedFamily, config: ModelConfig, weight_files: WeightFiles
) -> None:
    """Check, before memory is allocated, that a model is not far larger than its files."""
    with torch.device("meta"), skip_init():
        module = family.build_module(config)
    num_parameters = sum(parameter.numel() for parameter in module.parameters())
    num_stored = sum(math.prod(entry.shape) for entry in weight_files.tensors.entries.values())
    if num_parameters > MAX_GROWTH_FACTOR * num_stored + FREE_PARAMETERS:
        raise SensoriumError(
            f"The config of {weight_files.path} describes a model of {num_parameters:,} "
            f"parameters, but the files hold {num_stored:,} values. It is incomplete, or not the "
            "model that its config describes."
        )


class skip_init(TorchFunctionMode):  # noqa: N801 - used as a context manager, like torch.no_grad
    """Skip random initialization, for a module that is then loaded or only inspected.

    Weights are set to the mean of the distribution instead: torch samples a truncated normal
    distribution until no value lies outside, which could take forever for whatever was in memory.
    On the meta device, sampling would import torch's compiler, which takes more than a second.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in _RANDOM_INIT_NAMES:
            return func(*args, **kwargs)
        tensor = args[0] if args else kwargs["tensor"]
        mean = 0.0
        if name in _MEAN_INIT_NAMES:
            mean = kwargs.get("mean", args[1] if len(args) > 1 else 0.0)
        tensor.detach().fill_(mean)
        return tensor


_RANDOM_INIT_NAMES = {
    "normal_",
    "uniform_",
    "trunc_normal_",
    "kaiming_uniform_",
    "kaiming_normal_",
    "xavier_uniform_",
    "xavier_normal_",
    "orthogonal_",
}
_MEAN_INIT_NAMES = {"normal_", "trunc_normal_"}

"""A reference and ours with the same random weights: same outputs, same gradients, there and back through files."""
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sensorium.published.files import open_weights
from sensorium.published.published import ModelConfig, PretrainedFamily, export_from, load_into
from sensorium.stored import state_tensors

Save = Callable[[nn.Module, Path], None]


def stirred(module: Any) -> Any:
    """The module in evaluation mode, with every number at random: no norm is plain, no bias zero, no variance one."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():               # upward where there is one number a channel: variances are
                noise = torch.randn(value.shape, generator=draw)
                value.add_(0.02 * noise if value.ndim > 1 else 0.2 * noise.abs())
    return module.eval()


def lively(module: Any) -> Any:
    """The module in evaluation mode, its numbers drawn so that it matters which tokens stand where."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in module.state_dict().values():
            noise = torch.randn(value.shape, generator=draw)
            value.copy_(0.3 * noise if value.ndim > 1 else value + 0.1 * noise)
    return module.eval()


def save_pretrained(module: Any, folder: Path) -> None:
    """As transformers saves."""
    module.save_pretrained(folder)


def hosted(family: PretrainedFamily, folder: Path) -> tuple[nn.Module, ModelConfig]:
    """A published folder in our modules."""
    opened = open_weights(folder)
    config = family.detect_config(opened)
    assert config is not None
    module = family.build_module(config)
    load_into(module, opened.tensors, family.map_weights(config), unused_tensors=family.unused_tensors)
    return module.eval(), config


def there_and_back(family: PretrainedFamily, module: nn.Module, config: ModelConfig, source: Path, folder: Path) -> Path:
    """A folder of our weights under their names beside their config; nothing is lost but what nobody learned."""
    given, ours = open_weights(source).tensors, export_from(module, family.map_weights(config))
    for name, value in ours.items():
        assert torch.equal(value, given[name]), name
    folder.mkdir()
    for file in source.glob("*.json"):
        (folder / file.name).write_text(file.read_text())
    save_file(ours, folder / next(source.glob("*.safetensors")).name, {"format": "pt"})
    return folder


def close(ours: Tensor, theirs: Tensor, most: float = 1e-5) -> None:
    """No number further from theirs than `most` of the largest, if that is above 1; theirs are not all near zero."""
    assert ours.shape == theirs.shape
    largest = theirs.abs().max()
    assert largest > 100 * most
    assert (ours - theirs).abs().max() <= most * largest.clamp(min=1)


def same_gradients(family: PretrainedFamily, module: nn.Module, reference: Any, config: ModelConfig, folder: Path,
                   save: Save = save_pretrained) -> None:
    """After both went backward: every gradient of ours is theirs to 1e-4 of its length.

    Theirs come through a file that holds gradients in place of weights, since names and layouts are linear.
    """
    slopes = copy.deepcopy(reference)
    for value, slope in zip(slopes.parameters(), reference.parameters(), strict=True):
        value.data = torch.zeros_like(slope) if slope.grad is None else slope.grad
    save(slopes, folder)
    theirs = family.build_module(config)
    load_into(theirs, open_weights(folder).tensors, family.map_weights(config), unused_tensors=family.unused_tensors)
    expected = state_tensors(theirs)
    for name, value in module.named_parameters():
        if value.grad is None:
            assert not expected[name].any(), name
        else:
            off = (value.grad - expected[name]).norm() / expected[name].norm().clamp(min=1e-6)
            assert off <= 1e-4, f"{name}: {off:.2g}"

"""The contract of a published family: other people's trained weights, hosted by our modules.

A family is one `Published`, in a file of its own, named in the table of `published/__init__.py`:

    recognise   what a folder or a file holds → the family's config, or None where it is another's. A layout that comes
                without a config (torchvision, timm) is told by its names and shapes, which cost no reading of numbers.
    build       that config → our module, with whatever first weights; all learned ones are overwritten.
    names       that config → one `Name` for each tensor of ours: which of theirs it is made of, and the way back.
                What is not mentioned is refused, on both sides, unless `unused` has a pattern for it.
    senses      the settings of what it reads: an `Image`, a `Text` with their tokenizer (published/tokens.py), by the
                keyword its verbs take ("image", "text").
    verbs       our module and those settings → embed, generate, predict on raw values.

`fill` and `drain` then do the carrying for every family, and one test goes there and back with each.

    config = {...}; module = FAMILY.build(config)
    fill(module, theirs, FAMILY.names(config))          # theirs → ours
    drain(module, FAMILY.names(config))                 # ours → theirs
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sensorium.errors import SensoriumError
from sensorium.io.tensors import state_tensors
from sensorium.modalities.base import Modality
from sensorium.pretrained.weight_files import WeightFiles

ModelConfig = Mapping[str, Any]


def _identity(x: Tensor) -> Tensor:
    return x


def _as_tuple(x: Tensor) -> tuple[Tensor, ...]:
    return (x,)


@dataclass(frozen=True)
class WeightMapping:
    """A tensor of ours and what it goes by with them.

    read: their tensors, in order → ours. write: ours → theirs; undoes `read` exactly. Two names may make the same
    tensor of ours (tied weights that they store twice): they must then agree. optional: may be absent in a file.
    """

    target: str
    sources: tuple[str, ...]
    convert: Callable[..., Tensor] = field(default=_identity, compare=False)
    invert: Callable[[Tensor], Sequence[Tensor]] = field(default=_as_tuple, compare=False)
    optional: bool = False


def rename(target: str, source: str, *, optional: bool = False) -> WeightMapping:
    """The same tensor under another name."""
    return WeightMapping(target, (source,), optional=optional)


def concat(target: str, *sources: str, sizes: Sequence[int] | None = None) -> WeightMapping:
    """Several of theirs laid one under the other (q, k, v → qkv). sizes: the rows of each, where they differ."""
    return WeightMapping(
        target,
        sources,
        lambda *parts: torch.cat(parts),
        lambda x: x.split(list(sizes)) if sizes else x.chunk(len(sources)),
    )


def transpose(target: str, source: str) -> WeightMapping:
    """Theirs is the transpose of ours."""
    return WeightMapping(target, (source,), lambda x: x.mT, lambda x: (x.mT,))


def reshape(
    target: str, source: str, target_shape: Sequence[int], source_shape: Sequence[int]
) -> WeightMapping:
    """The same numbers in the same order in another shape (a patch convolution is a linear layer of ours)."""
    return WeightMapping(
        target,
        (source,),
        lambda x: x.reshape(tuple(target_shape)),
        lambda x: (x.reshape(tuple(source_shape)),),
    )


Verbs = Mapping[str, Callable[..., Any]]
Preprocessing = Mapping[str, Modality]


@dataclass(frozen=True)
class PretrainedFamily:
    """One published family, in one layout of names. See the head of this file."""

    name: str
    detect_config: Callable[[WeightFiles], ModelConfig | None]
    build_module: Callable[[ModelConfig], nn.Module]
    map_weights: Callable[[ModelConfig], Iterable[WeightMapping]]
    preprocessing: Callable[[ModelConfig, WeightFiles], Preprocessing]
    build_verbs: Callable[[nn.Module, Preprocessing], Verbs]
    unused_tensors: tuple[str, ...] = ()  # patterns of their tensors that hold nothing learned
    custom_load: Callable[[nn.Module, ModelConfig, WeightFiles], None] | None = (
        None  # how weights come in, where names cannot say it
    )


def load_pretrained(
    family: PretrainedFamily,
    config: ModelConfig,
    weight_files: WeightFiles,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """The family's module with the weights that were found. Raises SensoriumError as `fill` does."""
    with torch.random.fork_rng(), skip_init():
        module = family.build_module(config).to(dtype)
    if family.custom_load is not None:
        family.custom_load(module, config, weight_files)
    else:
        load_into(
            module,
            weight_files.tensors,
            family.map_weights(config),
            unused_tensors=family.unused_tensors,
            path=str(weight_files.path),
        )
    return module


def load_into(
    module: nn.Module,
    source_tensors: Mapping[str, Tensor],
    mappings: Iterable[WeightMapping],
    *,
    unused_tensors: Sequence[str] = (),
    path: str = "the file",
) -> None:
    """Copy their tensors into our module, in the module's own types; every one of both sides once.

    Raises SensoriumError, before anything is copied, where a tensor is missing or unknown; and where one has another
    shape, or two that should be one differ.
    """
    mappings, wanted = list(mappings), state_tensors(module)
    _check_complete(mappings, wanted, source_tensors, unused_tensors, path)
    filled: set[str] = set()
    with torch.no_grad():
        for name in mappings:
            if any(part not in source_tensors for part in name.sources):
                continue  # optional, as _complete has seen to it
            value = _convert_tensor(name, source_tensors, wanted[name.target], path)
            if name.target in filled and not torch.equal(
                wanted[name.target], value.to(wanted[name.target])
            ):
                raise SensoriumError(
                    f"{path}: {', '.join(name.sources)} should be the same weights as another tensor "
                    "that it is tied to, and is not"
                )
            wanted[name.target].copy_(value)
            filled.add(name.target)


def export_from(module: nn.Module, mappings: Iterable[WeightMapping]) -> dict[str, Tensor]:
    """Our module's weights under their names and in their shapes; tied ones once, optional ones left out."""
    held, done, theirs = state_tensors(module), set[str](), dict[str, Tensor]()
    for name in mappings:
        if name.target not in done and not name.optional:
            done.add(name.target)
            parts = (part.detach().contiguous() for part in name.invert(held[name.target]))
            theirs.update(zip(name.sources, parts, strict=True))
    if left := held.keys() - done:
        raise ValueError(f"the names of this family say nothing about {sorted(left)[0]}")
    return theirs


def _check_complete(
    mappings: Sequence[WeightMapping],
    target_tensors: Mapping[str, Tensor],
    source_tensors: Mapping[str, Tensor],
    unused_tensors: Sequence[str],
    path: str,
) -> None:
    said = {name.target for name in mappings}
    if said != target_tensors.keys():
        raise ValueError(
            f"the names of this family and its module differ in {sorted(said ^ target_tensors.keys())[0]}"
        )
    mentioned = {part for name in mappings for part in name.sources}
    optional = {part for name in mappings if name.optional for part in name.sources}
    missing = sorted(mentioned - optional - source_tensors.keys())
    unknown = sorted(
        key
        for key in source_tensors.keys() - mentioned
        if not any(fnmatchcase(key, p) for p in unused_tensors)
    )
    for what, found in (("lacks", missing), ("has the unknown", unknown)):
        if found:
            raise SensoriumError(
                f"{path} {what} tensor {found[0]}"
                + (f" and {len(found) - 1} more" if found[1:] else "")
                + ": it is not the model that its config describes, or is incomplete"
            )


def _convert_tensor(
    mapping: WeightMapping, source_tensors: Mapping[str, Tensor], target_tensor: Tensor, path: str
) -> Tensor:
    parts = [source_tensors[part] for part in mapping.sources]
    shapes = [tuple(part.shape) for part in parts]
    expected = [tuple(part.shape) for part in mapping.invert(target_tensor)]
    if shapes != expected:
        raise SensoriumError(
            f"{path}: {', '.join(mapping.sources)} has the shape {shapes}, but the config asks for "
            f"{expected}"
        )
    return mapping.convert(*parts)


class skip_init(TorchFunctionMode):
    """While it lasts, first weights are not drawn at random: for a module that is then filled, or only looked at.

    They are the mean of what would be drawn: torch draws a cut normal distribution until no value lies outside, which
    whatever stood in memory might do for ever. On the meta device, drawing would import torch's compiler: more than a
    second, for nothing.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (name := getattr(func, "__name__", "")) in _RANDOM_INIT_NAMES:
            tensor = args[0] if args else kwargs["tensor"]
            mean = (
                kwargs.get("mean", args[1] if len(args) > 1 else 0.0)
                if name in _MEAN_INIT_NAMES
                else 0.0
            )
            tensor.detach().fill_(mean)
            return tensor
        return func(*args, **kwargs)


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

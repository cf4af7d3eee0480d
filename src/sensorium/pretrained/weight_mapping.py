"""Mappings between the tensors of pretrained files and our weights, in both directions.

load_into(module, source_tensors, family.map_weights(config))     # theirs -> ours
export_from(module, family.map_weights(config))                   # ours -> theirs
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.io.tensors import state_tensors


def _identity(x: Tensor) -> Tensor:
    return x


def _as_tuple(x: Tensor) -> tuple[Tensor, ...]:
    return (x,)


@dataclass(frozen=True)
class WeightMapping:
    """How one weight of ours is made from the tensors of a file.

    Two mappings may have the same target (tied weights that a file stores twice); their values must
    then agree.

    Attributes:
        target: Name of our weight.
        sources: Names of their tensors.
        convert: Their tensors, in order -> our weight.
        invert: Our weight -> their tensors; the exact inverse of `convert`.
        optional: Whether the file may lack the tensors.
    """

    target: str
    sources: tuple[str, ...]
    convert: Callable[..., Tensor] = field(default=_identity, compare=False)
    invert: Callable[[Tensor], Sequence[Tensor]] = field(default=_as_tuple, compare=False)
    optional: bool = False


WeightMappings = list[WeightMapping]


def rename(target: str, source: str, *, optional: bool = False) -> WeightMapping:
    """Map a tensor to the same tensor under another name."""
    return WeightMapping(target, (source,), optional=optional)


def concat(target: str, *sources: str, sizes: Sequence[int] | None = None) -> WeightMapping:
    """Concatenate tensors along the first axis, as query, key and value to qkv.

    Args:
        target: Name of our weight.
        *sources: Names of their tensors, in order.
        sizes: The rows of each; None: all have the same number.
    """
    return WeightMapping(
        target,
        sources,
        lambda *parts: torch.cat(parts),
        lambda x: x.split(list(sizes)) if sizes else x.chunk(len(sources)),
    )


def transpose(target: str, source: str) -> WeightMapping:
    """Map a matrix to its transpose."""
    return WeightMapping(target, (source,), lambda x: x.mT, lambda x: (x.mT,))


def reshape(
    target: str, source: str, target_shape: Sequence[int], source_shape: Sequence[int]
) -> WeightMapping:
    """Map a tensor to the same values, in the same order, in another shape."""
    return WeightMapping(
        target,
        (source,),
        lambda x: x.reshape(tuple(target_shape)),
        lambda x: (x.reshape(tuple(source_shape)),),
    )


def squeeze(target: str, source: str, num_axes: int = 1) -> WeightMapping:
    """Drop the leading axes of length one that their tensor has."""
    return WeightMapping(
        target,
        (source,),
        lambda x: x.reshape(x.shape[num_axes:]),
        lambda x: (x.reshape((1,) * num_axes + x.shape),),
    )


def patch_kernel(target: str, source: str, patch_size: int) -> WeightMapping:
    """Map the kernel of a patch convolution to our linear layer over flattened patches."""
    return WeightMapping(
        target,
        (source,),
        lambda x: x.flatten(1),
        lambda x: (x.reshape(len(x), 3, patch_size, patch_size),),
    )


def weight_bias(target: str, source: str) -> WeightMappings:
    """Map weight and bias of a layer or a norm."""
    return [rename(f"{target}.{name}", f"{source}.{name}") for name in ("weight", "bias")]


def conv_bn(target: str, conv: str, norm: str, has_batch_count: bool = True) -> WeightMappings:
    """Map a convolution and its batch norm, with the running statistics.

    Args:
        target: Our sequence of the two.
        conv: Their convolution.
        norm: Their batch norm.
        has_batch_count: Whether the file must hold `num_batches_tracked`.
    """
    count = "num_batches_tracked"
    return [
        rename(f"{target}.0.weight", f"{conv}.weight"),
        *weight_bias(f"{target}.1", norm),
        rename(f"{target}.1.running_mean", f"{norm}.running_mean"),
        rename(f"{target}.1.running_var", f"{norm}.running_var"),
        rename(f"{target}.1.{count}", f"{norm}.{count}", optional=not has_batch_count),
    ]


BlockLayers = Mapping[str, str | tuple[str, ...]]


def map_blocks(target: str, source: str, depth: int, layers: BlockLayers) -> WeightMappings:
    """Map the layers of `depth` numbered blocks, each layer with weight and bias.

    Args:
        target: Our list of blocks.
        source: Theirs.
        depth: The number of blocks.
        layers: Layer of our block -> theirs, or those that ours concatenates (query, key, value).
    """
    mappings: WeightMappings = []
    for i in range(depth):
        for layer, names in layers.items():
            for parameter in ("weight", "bias"):
                target_name = f"{target}.{i}.{layer}.{parameter}"
                if isinstance(names, str):
                    mappings.append(rename(target_name, f"{source}.{i}.{names}.{parameter}"))
                else:
                    sources = (f"{source}.{i}.{name}.{parameter}" for name in names)
                    mappings.append(concat(target_name, *sources))
    return mappings


def load_into(
    module: nn.Module,
    source_tensors: Mapping[str, Tensor],
    mappings: Iterable[WeightMapping],
    *,
    unused_tensors: Sequence[str] = (),
    path: str = "the file",
) -> None:
    """Copy pretrained tensors into a module, in the module's own types.

    Args:
        module: The module, every weight of which is overwritten.
        source_tensors: The tensors of the file; all must be used.
        mappings: One or more for every weight of the module.
        unused_tensors: Patterns of tensors that are ignored.
        path: The file, which errors name.

    Raises:
        SensoriumError: Before anything is copied, if a tensor is missing or unknown; and if one has
            another shape, or tied weights differ.
    """
    mappings = list(mappings)
    targets = state_tensors(module)
    _check_complete(mappings, targets, source_tensors, unused_tensors, path)
    loaded: set[str] = set()
    with torch.no_grad():
        for mapping in mappings:
            if any(source not in source_tensors for source in mapping.sources):
                continue  # optional, as _check_complete made sure
            target = targets[mapping.target]
            value = _convert_tensor(mapping, source_tensors, target, path)
            if mapping.target in loaded and not torch.equal(target, value.to(target)):
                raise SensoriumError(
                    f"{path} holds {', '.join(mapping.sources)} with other values than the tensor "
                    "that it is tied to. The file does not fit its config."
                )
            target.copy_(value)
            loaded.add(mapping.target)


def export_from(module: nn.Module, mappings: Iterable[WeightMapping]) -> dict[str, Tensor]:
    """Return the weights of a module under the names and in the shapes of the pretrained files.

    Tied weights are included once, optional ones are not.
    """
    weights = state_tensors(module)
    exported: set[str] = set()
    tensors: dict[str, Tensor] = {}
    for mapping in mappings:
        if mapping.target in exported or mapping.optional:
            continue
        exported.add(mapping.target)
        parts = (part.detach().contiguous() for part in mapping.invert(weights[mapping.target]))
        tensors.update(zip(mapping.sources, parts, strict=True))
    unmapped = weights.keys() - exported
    if unmapped:
        raise ValueError(f"the family maps no tensor to {min(unmapped)}")
    return tensors


def _check_complete(
    mappings: Sequence[WeightMapping],
    targets: Mapping[str, Tensor],
    source_tensors: Mapping[str, Tensor],
    unused_tensors: Sequence[str],
    path: str,
) -> None:
    differing = {mapping.target for mapping in mappings} ^ targets.keys()
    if differing:
        raise ValueError(f"mappings and module of the family differ in {min(differing)}")
    expected = {source for mapping in mappings for source in mapping.sources}
    optional = {source for mapping in mappings if mapping.optional for source in mapping.sources}
    missing = sorted(expected - optional - source_tensors.keys())
    unknown = sorted(
        name
        for name in source_tensors.keys() - expected
        if not any(fnmatchcase(name, pattern) for pattern in unused_tensors)
    )
    for fault, names in (("lacks", missing), ("has the unknown", unknown)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise SensoriumError(
                f"{path} {fault} tensor {names[0]}{more}. It is incomplete, or not the model that "
                "its config describes."
            )


def _convert_tensor(
    mapping: WeightMapping, source_tensors: Mapping[str, Tensor], target: Tensor, path: str
) -> Tensor:
    parts = [source_tensors[source] for source in mapping.sources]
    shapes = [tuple(part.shape) for part in parts]
    expected = [tuple(part.shape) for part in mapping.invert(target)]
    if shapes != expected:
        raise SensoriumError(
            f"{path} holds {', '.join(mapping.sources)} in the shape {shapes}, but its config "
            f"requires {expected}."
        )
    return mapping.convert(*parts)

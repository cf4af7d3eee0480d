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
from sensorium.modalities.modality import Modality
from sensorium.published.files import Opened
from sensorium.stored import weights

Config = Mapping[str, Any]


def _alone(x: Tensor) -> Tensor:
    return x


def _one(x: Tensor) -> tuple[Tensor, ...]:
    return (x,)


@dataclass(frozen=True)
class Name:
    """A tensor of ours and what it goes by with them.

    read: their tensors, in order → ours. write: ours → theirs; undoes `read` exactly. Two names may make the same
    tensor of ours (tied weights that they store twice): they must then agree. optional: may be absent in a file.
    """

    ours: str
    theirs: tuple[str, ...]
    read: Callable[..., Tensor] = field(default=_alone, compare=False)
    write: Callable[[Tensor], Sequence[Tensor]] = field(default=_one, compare=False)
    optional: bool = False


def same(ours: str, theirs: str, *, optional: bool = False) -> Name:
    """The same tensor under another name."""
    return Name(ours, (theirs,), optional=optional)


def stacked(ours: str, *theirs: str, sizes: Sequence[int] | None = None) -> Name:
    """Several of theirs laid one under the other (q, k, v → qkv). sizes: the rows of each, where they differ."""
    return Name(ours, theirs, lambda *parts: torch.cat(parts),
                lambda x: x.split(list(sizes)) if sizes else x.chunk(len(theirs)))


def turned(ours: str, theirs: str) -> Name:
    """Theirs is the transpose of ours."""
    return Name(ours, (theirs,), lambda x: x.mT, lambda x: (x.mT,))


def shaped(ours: str, theirs: str, shape: Sequence[int], theirs_shape: Sequence[int]) -> Name:
    """The same numbers in the same order in another shape (a patch convolution is a linear layer of ours)."""
    return Name(ours, (theirs,), lambda x: x.reshape(tuple(shape)), lambda x: (x.reshape(tuple(theirs_shape)),))


Verbs = Mapping[str, Callable[..., Any]]
Senses = Mapping[str, Modality]


@dataclass(frozen=True)
class Published:
    """One published family, in one layout of names. See the head of this file."""

    name: str
    recognise: Callable[[Opened], Config | None]
    build: Callable[[Config], nn.Module]
    names: Callable[[Config], Iterable[Name]]
    senses: Callable[[Config, Opened], Senses]
    verbs: Callable[[nn.Module, Senses], Verbs]
    unused: tuple[str, ...] = ()                        # patterns of their tensors that hold nothing learned
    carry: Callable[[nn.Module, Config, Opened], None] | None = None    # how weights come in, where names cannot say it


def weighted(family: Published, config: Config, opened: Opened, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The family's module with the weights that were found. Raises SensoriumError as `fill` does."""
    with torch.random.fork_rng(), undrawn():
        module = family.build(config).to(dtype)
    if family.carry is not None:
        family.carry(module, config, opened)
    else:
        fill(module, opened.tensors, family.names(config), unused=family.unused, place=str(opened.place))
    return module


def fill(module: nn.Module, theirs: Mapping[str, Tensor], names: Iterable[Name], *, unused: Sequence[str] = (),
         place: str = "the file") -> None:
    """Copy their tensors into our module, in the module's own types; every one of both sides once.

    Raises SensoriumError, before anything is copied, where a tensor is missing or unknown; and where one has another
    shape, or two that should be one differ.
    """
    names, wanted = list(names), weights(module)
    _complete(names, wanted, theirs, unused, place)
    filled: set[str] = set()
    with torch.no_grad():
        for name in names:
            if any(part not in theirs for part in name.theirs):
                continue                                # optional, as _complete has seen to it
            value = _read(name, theirs, wanted[name.ours], place)
            if name.ours in filled and not torch.equal(wanted[name.ours], value.to(wanted[name.ours])):
                raise SensoriumError(f"{place}: {', '.join(name.theirs)} should be the same weights as another tensor "
                                     "that it is tied to, and is not")
            wanted[name.ours].copy_(value)
            filled.add(name.ours)


def drain(module: nn.Module, names: Iterable[Name]) -> dict[str, Tensor]:
    """Our module's weights under their names and in their shapes; tied ones once, optional ones left out."""
    held, done, theirs = weights(module), set[str](), dict[str, Tensor]()
    for name in names:
        if name.ours not in done and not name.optional:
            done.add(name.ours)
            parts = (part.detach().contiguous() for part in name.write(held[name.ours]))
            theirs.update(zip(name.theirs, parts, strict=True))
    if left := held.keys() - done:
        raise ValueError(f"the names of this family say nothing about {sorted(left)[0]}")
    return theirs


def _complete(names: Sequence[Name], ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor],
              unused: Sequence[str], place: str) -> None:
    said = {name.ours for name in names}
    if said != ours.keys():
        raise ValueError(f"the names of this family and its module differ in {sorted(said ^ ours.keys())[0]}")
    mentioned = {part for name in names for part in name.theirs}
    optional = {part for name in names if name.optional for part in name.theirs}
    missing = sorted(mentioned - optional - theirs.keys())
    unknown = sorted(key for key in theirs.keys() - mentioned if not any(fnmatchcase(key, p) for p in unused))
    for what, found in (("lacks", missing), ("has the unknown", unknown)):
        if found:
            raise SensoriumError(f"{place} {what} tensor {found[0]}" + (f" and {len(found) - 1} more" if found[1:]
                                 else "") + ": it is not the model that its config describes, or is incomplete")


def _read(name: Name, theirs: Mapping[str, Tensor], ours: Tensor, place: str) -> Tensor:
    parts = [theirs[part] for part in name.theirs]
    shapes = [tuple(part.shape) for part in parts]
    expected = [tuple(part.shape) for part in name.write(ours)]
    if shapes != expected:
        raise SensoriumError(f"{place}: {', '.join(name.theirs)} has the shape {shapes}, but the config asks for "
                             f"{expected}")
    return name.read(*parts)


class undrawn(TorchFunctionMode):
    """While it lasts, first weights are not drawn at random: for a module that is then filled, or only looked at.

    They are the mean of what would be drawn: torch draws a cut normal distribution until no value lies outside, which
    whatever stood in memory might do for ever. On the meta device, drawing would import torch's compiler: more than a
    second, for nothing.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (name := getattr(func, "__name__", "")) in _DRAWS:
            tensor = args[0] if args else kwargs["tensor"]
            mean = kwargs.get("mean", args[1] if len(args) > 1 else 0.0) if name in _AROUND else 0.0
            tensor.detach().fill_(mean)
            return tensor
        return func(*args, **kwargs)


_DRAWS = {"normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_",
          "xavier_normal_", "orthogonal_"}
_AROUND = {"normal_", "trunc_normal_"}

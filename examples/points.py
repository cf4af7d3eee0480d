"""A kind of column of one's own, in one file: clouds of points in space, such as scans.

    sensorium --use examples/points.py data scans.csv

A cell names an .xyz file (a line for each point: x y z) or holds a list of points [[x, y, z], ...].

    B batch   N points   D width
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32
from PIL import Image, ImageDraw
from torch import Tensor, nn

import sensorium as sn
from sensorium.modalities.base import settings_to_dict, validate_settings
from sensorium.models.towers import Encoder
from sensorium.nn.linear import Linear
from sensorium.nn.tokens import Tokens
from sensorium.nn.transformer import build_transformer
from sensorium.recipes.encoders import num_heads

BYTES = 16 << 20  # the largest file that is read


@dataclass(frozen=True)
class Points:
    """Settings of a column of clouds. most: points a model sees, evenly chosen from more. size: of a usual one."""

    kind: ClassVar[str] = "points"
    endings: ClassVar[tuple[str, ...]] = (".xyz",)
    most: int = 256
    size: float = 1.0

    def fit(self, values: Iterable[Any]) -> "Points":
        """The size of a usual cloud: the root of the mean square distance from its middle."""
        plain, sizes = replace(self, size=1.0), []
        for value in (v for v in values if v is not None):
            try:
                sizes.append(float(np.sqrt(np.square(plain.load(value)).sum(1).mean())))
            except ValueError:
                continue  # left out by name where the data are prepared
        return replace(self, size=float(np.median(sizes)) or 1.0) if sizes else self

    def load(self, raw: Any) -> Float32[np.ndarray, "N 3"]:
        """One cloud around its middle, in units of `size`. Raises ValueError with the reason it cannot be read."""
        points = _file(Path(raw)) if isinstance(raw, str | Path) else np.asarray(raw, np.float64)
        if (
            points.ndim != 2
            or points.shape[1] != 3
            or not len(points)
            or not np.isfinite(points).all()
        ):
            raise ValueError(f"expected points [N 3] that are finite, found {points.shape}")
        chosen = points[
            np.linspace(0, len(points) - 1, min(len(points), self.most)).round().astype(int)
        ]
        return ((chosen - chosen.mean(0)) / self.size).astype(np.float32)

    def collate(self, values: Sequence[Float32[np.ndarray, "_ 3"]]) -> Float[Tensor, "B N 4"]:
        """x, y, z and 1 for each point; zeros after a smaller cloud."""
        out = torch.zeros(len(values), max(1, max(map(len, values), default=1)), 4)
        for row, value in zip(out, values, strict=True):
            row[: len(value), :3], row[: len(value), 3] = torch.from_numpy(value), 1
        return out

    def augment(
        self,
        batch: Float[Tensor, "B N 4"],
        rng: torch.Generator,
        *,
        turn: float = 0.0,
        jitter: float = 0.0,
    ) -> Float[Tensor, "B N 4"]:
        """Turned about z by up to `turn` degrees, and each point moved by about `jitter`."""
        angle = torch.deg2rad(turn * (2 * torch.rand(len(batch), generator=rng) - 1))
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        turned = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, zero + 1], 1).view(
            -1, 3, 3
        )
        moved = batch[..., :3] @ turned + jitter * torch.randn(*batch.shape[:2], 3, generator=rng)
        return torch.cat([moved * batch[..., 3:], batch[..., 3:]], -1)

    def fake(self, n: int, rng: torch.Generator) -> Float[Tensor, "n N 4"]:
        """n made-up clouds of 3 to 20 points, for tests and dry runs."""
        real = torch.arange(20) < torch.randint(3, 21, (n, 1), generator=rng)
        return (
            torch.cat([torch.randn(n, 20, 3, generator=rng), torch.ones(n, 20, 1)], -1)
            * real[..., None]
        )

    def show(self, cloud: Float[Tensor, "N 4"]) -> Image.Image:
        """A picture of it from above."""
        picture = Image.new("L", (128, 128), 255)
        for x, y, _, real in cloud.tolist():
            if real:
                ImageDraw.Draw(picture).ellipse(
                    [64 + 30 * x - 1, 64 - 30 * y - 1, 64 + 30 * x + 1, 64 - 30 * y + 1], 0
                )
        return picture

    def to_json(self) -> dict[str, Any]:
        return settings_to_dict(self)

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> "Points":
        return cls(**validate_settings(cls, given))


def _file(path: Path) -> np.ndarray:
    try:
        if (size := path.stat().st_size) > BYTES:
            raise ValueError(f"{size:,} bytes, where {BYTES:,} are the most")
        rows = [
            [float(number) for number in line.split()]
            for line in path.read_text().splitlines()
            if line.strip()
        ]
        return np.array(rows, np.float64)
    except OSError as e:
        raise ValueError(f"it cannot be opened: {e.strerror}") from e


class EachPoint(nn.Module):
    """Clouds → Tokens: each point for itself, by the same two layers (PointNet, Qi et al. 2017)."""

    def __init__(self, dim: int):
        super().__init__()
        self.layers = nn.Sequential(Linear(3, dim), nn.GELU(), Linear(dim, dim))

    def summary(self, clouds: Float[Tensor, "B N 4"]) -> None:
        return None

    def forward(self, clouds: Float[Tensor, "B N 4"]) -> Tokens:
        return Tokens(self.layers(clouds[..., :3]), clouds[..., :3], valid=clouds[..., 3] > 0)


def apart(points: Points, dim: int, depth: int, dropout: float) -> Encoder:
    """No point knows of another."""
    return Encoder(EachPoint(dim))


def together(points: Points, dim: int, depth: int, dropout: float) -> Encoder:
    """All points see each other, in no order."""
    return Encoder(EachPoint(dim), build_transformer(dim, depth, num_heads(dim), dropout=dropout))


sn.add_modality(Points, together=together, apart=apart)

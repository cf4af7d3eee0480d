"""A custom modality in one file: 3D point clouds, such as scans.

    sensorium --use examples/points.py data scans.csv

A cell names an .xyz file (one line per point: x y z) or holds a list of points [[x, y, z], ...].

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
from sensorium.nn.transformer import build_transformer, num_heads

MAX_FILE_BYTES = 16 << 20


@dataclass(frozen=True)
class Points:
    """Settings of a column of point clouds.

    Attributes:
        max_points: Largest number of points a model sees; larger clouds are sampled evenly.
        size: Root mean square distance of the points from their center, of a typical cloud.
    """

    kind: ClassVar[str] = "points"
    extensions: ClassVar[tuple[str, ...]] = (".xyz",)
    max_points: int = 256
    size: float = 1.0

    def fit(self, values: Iterable[Any]) -> "Points":
        """Return settings with the median size of the clouds; unreadable ones are skipped."""
        unscaled = replace(self, size=1.0)
        sizes = []
        for value in values:
            if value is None:
                continue
            try:
                points = unscaled.load(value)
            except ValueError:
                continue  # reported and quarantined when the data are prepared
            sizes.append(float(np.sqrt(np.square(points).sum(1).mean())))
        if not sizes:
            return self
        return replace(self, size=float(np.median(sizes)) or 1.0)

    def load(self, raw: Any) -> Float32[np.ndarray, "N 3"]:
        """Return one cloud, centered, in units of `size`.

        Args:
            raw: The path of an .xyz file, or points [N 3].

        Raises:
            ValueError: If it cannot be read.
        """
        if isinstance(raw, str | Path):
            points = _read_xyz(Path(raw))
        else:
            points = np.asarray(raw, np.float64)
        is_cloud = points.ndim == 2 and points.shape[1] == 3 and len(points) > 0
        if not is_cloud or not np.isfinite(points).all():
            raise ValueError(f"expected finite points [N 3], got shape {list(points.shape)}")
        count = min(len(points), self.max_points)
        indices = np.linspace(0, len(points) - 1, count).round().astype(int)
        sample = points[indices]
        return ((sample - sample.mean(0)) / self.size).astype(np.float32)

    def collate(self, values: Sequence[Float32[np.ndarray, "_ 3"]]) -> Float[Tensor, "B N 4"]:
        """Return x, y, z and 1 for each point; zeros after a smaller cloud."""
        longest = max(1, max(map(len, values), default=1))
        batch = torch.zeros(len(values), longest, 4)
        for row, value in zip(batch, values, strict=True):
            row[: len(value), :3] = torch.from_numpy(value)
            row[: len(value), 3] = 1
        return batch

    def augment(
        self,
        batch: Float[Tensor, "B N 4"],
        rng: torch.Generator,
        *,
        rotate: float = 0.0,
        jitter: float = 0.0,
    ) -> Float[Tensor, "B N 4"]:
        """Return clouds with random changes.

        Args:
            batch: Clouds as `collate` returns them.
            rng: Random generator.
            rotate: Largest rotation about the z axis in degrees, either way.
            jitter: Standard deviation of Gaussian noise on each coordinate.
        """
        angle = torch.deg2rad(rotate * (2 * torch.rand(len(batch), generator=rng) - 1))
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        rotation = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, zero + 1], 1)
        noise = jitter * torch.randn(*batch.shape[:2], 3, generator=rng)
        points = batch[..., :3] @ rotation.view(-1, 3, 3) + noise
        return torch.cat([points * batch[..., 3:], batch[..., 3:]], -1)

    def fake(self, n: int, rng: torch.Generator) -> Float[Tensor, "n N 4"]:
        """Return n random clouds of 3 to 20 points, for tests and dry runs."""
        valid = torch.arange(20) < torch.randint(3, 21, (n, 1), generator=rng)
        points = torch.cat([torch.randn(n, 20, 3, generator=rng), torch.ones(n, 20, 1)], -1)
        return points * valid[..., None]

    def decode(self, cloud: Float[Tensor, "N 4"]) -> Image.Image:
        """Return an image of the cloud from above."""
        image = Image.new("L", (128, 128), 255)
        draw = ImageDraw.Draw(image)
        for x, y, _, valid in cloud.tolist():
            if valid:
                column, row = 64 + 30 * x, 64 - 30 * y
                draw.ellipse([column - 1, row - 1, column + 1, row + 1], 0)
        return image

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return settings_to_dict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Points":
        """Return settings from plain JSON values."""
        return cls(**validate_settings(cls, data))


def _read_xyz(path: Path) -> np.ndarray:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ValueError(f"{size:,} bytes, more than the limit of {MAX_FILE_BYTES:,} bytes")
        lines = path.read_text().splitlines()
    except OSError as e:
        raise ValueError(f"cannot be opened: {e.strerror}") from e
    return np.array([[float(x) for x in line.split()] for line in lines if line.strip()])


class PointEmbedding(nn.Module):
    """Point clouds → Tokens: the same two layers for each point (PointNet, Qi et al. 2017).

    Args:
        dim: Width of the tokens.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.layers = nn.Sequential(Linear(3, dim), nn.GELU(), Linear(dim, dim))

    def pool_index(self, clouds: Float[Tensor, "B N 4"]) -> None:
        """Return None: the mean of all tokens represents the cloud."""

    def forward(self, clouds: Float[Tensor, "B N 4"]) -> Tokens:
        """Return one token per point; those of padding are not valid."""
        return Tokens(self.layers(clouds[..., :3]), clouds[..., :3], valid=clouds[..., 3] > 0)


def apart(points: Points, dim: int, layers: int, dropout: float) -> Encoder:  # noqa: ARG001
    """Build an encoder in which points do not interact."""
    return Encoder(PointEmbedding(dim))


def together(points: Points, dim: int, layers: int, dropout: float) -> Encoder:  # noqa: ARG001
    """Build an encoder with a Transformer over all points, without an order."""
    embedding = PointEmbedding(dim)
    trunk = build_transformer(dim, layers, num_heads(dim), dropout=dropout)
    return Encoder(embedding, trunk)


sn.add_modality(Points, together=together, apart=apart)

"""Endless batches, each a pure function of (seed, epoch, position).

Training can therefore resume exactly where it stopped.

R rows   S rows of an epoch   K rows of one chunk
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from sensorium.data.cache.columns import Augment
from sensorium.data.cache.prepared import PreparedDataset
from sensorium.errors import SensoriumError
from sensorium.nn.tokens import Batch
from sensorium.rng import generator


class BatchLoader:
    """Endless batches of some rows, in a new order each epoch.

    Args:
        dataset: the prepared values.
        rows: the rows to sample.
        batch_size: rows per batch; fewer rows are one batch.
        seed: random seed of the order and the augmentation.
        augment: the augmentation of each column, {column: {transform: strength}}.
        drop_last: end an epoch with its last full batch; the rows left over, which differ from
            epoch to epoch, are skipped. Otherwise the last batch is shorter, and every row occurs
            exactly once.
        samples_per_group: k > 0 samples chunks of k rows of one group, so that every row has a
            partner. A row then occurs at least once an epoch, and more often where the size of its
            group is not a multiple of k.

    Raises:
        SensoriumError: if there are no rows, or `batch_size` is not a positive multiple of
            `samples_per_group`.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        rows: Sequence[int] | np.ndarray,
        batch_size: int,
        *,
        seed: int = 0,
        augment: Augment | None = None,
        drop_last: bool = True,
        samples_per_group: int = 0,
    ):
        self.dataset = dataset
        self.rows = np.asarray(rows, np.int64)
        self.seed = seed
        self.augment = augment
        self.samples_per_group = samples_per_group
        self.epoch = 0
        self.position = 0
        if not len(self.rows):
            raise SensoriumError("there are no rows to sample batches from. Check the splits.")
        if batch_size < 1 or samples_per_group < 0 or batch_size % max(1, samples_per_group):
            raise SensoriumError(
                f"--batch-size {batch_size} is not a positive multiple of --samples-per-group "
                f"{samples_per_group}. Change one of them."
            )
        epoch_size = len(self._epoch_order(0))
        self.batch_size = min(batch_size, epoch_size)
        num_full, num_left = divmod(epoch_size, self.batch_size)
        self.steps_per_epoch = num_full if drop_last or not num_left else num_full + 1
        self._cached_order: tuple[int, np.ndarray] = (-1, self.rows)  # (epoch, its rows in order)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches from `epoch` and `position` on, which advance before a batch is yielded."""
        while True:
            batch = self.batch(self.epoch, self.position)
            self.position += 1
            if self.position == self.steps_per_epoch:
                self.epoch += 1
                self.position = 0
            yield batch

    def batch(self, epoch: int, position: int) -> Batch:
        """Return the batch at a position of an epoch, independently of what was loaded before."""
        if self._cached_order[0] != epoch:
            self._cached_order = (epoch, self._epoch_order(epoch))
        order = self._cached_order[1]
        return self.dataset.batch(
            order[position * self.batch_size : (position + 1) * self.batch_size],
            generator(self.seed, epoch, position),
            self.augment,
            share_captions=self.samples_per_group > 1,
        )

    def _epoch_order(self, epoch: int) -> Int[np.ndarray, " S"]:
        """Return the rows of an epoch in order."""
        groups = self.dataset.groups[self.rows] if self.samples_per_group else None
        return epoch_order(self.rows, groups, self.samples_per_group, epoch, self.seed)

    def state_dict(self) -> dict[str, Any]:
        """Return the position and what identifies the rows, as plain values."""
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "position": self.position,
            "batch_size": self.batch_size,
            "samples_per_group": self.samples_per_group,
            "steps_per_epoch": self.steps_per_epoch,
            "rows": hashlib.sha256(self.rows.tobytes()).hexdigest()[:16],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state.

        Raises:
            SensoriumError: if it was saved with other rows or another batch size.
        """
        own = self.state_dict()
        for name in ("rows", "batch_size", "samples_per_group", "steps_per_epoch"):
            if state.get(name) != own[name]:
                raise SensoriumError(
                    f"cannot resume: the run was saved with {name} {state.get(name)!r}, but is now "
                    f"{own[name]!r}. Use the same data and --batch-size, or start a new run."
                )
        self.seed = int(state["seed"])
        self.epoch = int(state["epoch"])
        self.position = int(state["position"])
        self._cached_order = (-1, self.rows)


def epoch_order(
    rows: Int[np.ndarray, " R"],
    groups: Int[np.ndarray, " R"] | None,
    samples_per_group: int,
    epoch: int,
    seed: int,
) -> Int[np.ndarray, " S"]:
    """Return the rows of an epoch in random order.

    With `groups`, these are shuffled chunks of `samples_per_group` rows of one group.
    The rows of a group are shuffled and cut into chunks, the last filled up with its first rows.
    The chunks of a group lie evenly over the epoch from a random start, so that two are in one
    batch only where the group is a large part of the data.

    Args:
        rows: row numbers.
        groups: the group of each row.
        samples_per_group: K, the rows of one chunk.
        epoch: number of the epoch.
        seed: random seed of the order.
    """
    rng = generator(seed, epoch)
    shuffled = torch.randperm(len(rows), generator=rng).numpy()
    if groups is None:
        return rows[shuffled]
    by_group = shuffled[np.argsort(groups[shuffled], kind="stable")]
    _, first, count = np.unique(groups[by_group], return_index=True, return_counts=True)
    num_chunks = -(-count // samples_per_group)  # of each group
    group = np.repeat(np.arange(len(count)), num_chunks)  # of each chunk
    number = np.arange(len(group)) - np.repeat(num_chunks.cumsum() - num_chunks, num_chunks)
    member = number[:, None] * samples_per_group + np.arange(samples_per_group)
    member %= count[group][:, None]
    start = torch.rand(len(count), generator=rng, dtype=torch.float64).numpy()
    position = (number + start[group]) / num_chunks[group]  # in the epoch, 0 to 1
    chunks = rows[by_group[first[group][:, None] + member]]
    return chunks[position.argsort(kind="stable")].reshape(-1)

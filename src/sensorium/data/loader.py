"""Batches without end, each a pure function of (seed, epoch, position): stop anywhere, go on exactly there.

R rows   G groups   K rows of a piece
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from sensorium.data.cache.prepared import PreparedDataset
from sensorium.errors import SensoriumError
from sensorium.nn.tokens import Batch, ColumnKey
from sensorium.rng import generator

Augment = Mapping[ColumnKey, Mapping[str, float]]


class BatchLoader:
    """Endless batches of `rows`, in a new order each epoch.

    drop_last: an epoch ends with its last full batch; the rows beyond it, others each time, wait for another epoch.
    Otherwise its last batch is a shorter one, and every row is seen exactly once. Fewer rows than `batch_size` are one
    batch. per_group: k > 0 draws batches from pieces of k rows that show the same thing (rows of one group), so that
    every row has a partner; a row then comes at least once an epoch, and again where its group is no multiple of k.
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
        self.dataset, self.rows = dataset, np.asarray(rows, np.int64)
        self.seed, self.augment, self.samples_per_group = seed, augment, samples_per_group
        self.epoch = self.position = 0
        if not len(self.rows):
            raise SensoriumError("there are no rows to draw batches from.")
        if batch_size < 1 or samples_per_group < 0 or batch_size % max(1, samples_per_group):
            raise SensoriumError(
                f"batch_size={batch_size} must be 1 or more, and a multiple of samples_per_group={samples_per_group}."
            )
        each = len(
            epoch_order(
                self.rows,
                dataset.groups[self.rows] if samples_per_group else None,
                samples_per_group,
                0,
                seed,
            )
        )
        self.batch_size = min(batch_size, each)
        self.steps_per_epoch = each // self.batch_size if drop_last else -(-each // self.batch_size)
        self._order: tuple[int, np.ndarray] = (-1, self.rows)

    def __iter__(self) -> Iterator[Batch]:
        """Batches from where `epoch` and `position` stand; when one is handed out they stand at the next."""
        while True:
            batch = self.batch(self.epoch, self.position)
            self.position += 1
            if self.position == self.steps_per_epoch:
                self.epoch, self.position = self.epoch + 1, 0
            yield batch

    def batch(self, epoch: int, position: int) -> Batch:
        """The batch at that place, whatever was asked for before."""
        if self._order[0] != epoch:
            groups = self.dataset.groups[self.rows] if self.samples_per_group else None
            self._order = (
                epoch,
                epoch_order(self.rows, groups, self.samples_per_group, epoch, self.seed),
            )
        rows = self._order[1][position * self.batch_size : (position + 1) * self.batch_size]
        return self.dataset.batch(
            rows,
            generator(self.seed, epoch, position),
            self.augment,
            share_captions=self.samples_per_group > 1,
        )

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, as plain values, and what it draws from."""
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "position": self.position,
            "batch_size": self.batch_size,
            "per_group": self.samples_per_group,
            "steps_per_epoch": self.steps_per_epoch,
            "rows": hashlib.sha256(self.rows.tobytes()).hexdigest()[:16],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`. Raises SensoriumError where it is of other rows or another batch size, seed aside."""
        here = self.state_dict()
        for name in ("rows", "batch_size", "per_group", "steps_per_epoch"):
            if state.get(name) != here[name]:
                raise SensoriumError(
                    f"cannot go on: the run was saved with {name} {state.get(name)!r}, and now it is "
                    f"{here[name]!r}. Give it the same data and batch size, or start a new run."
                )
        self.seed, self.epoch, self.position = (
            int(state["seed"]),
            int(state["epoch"]),
            int(state["position"]),
        )
        self._order = (-1, self.rows)


def epoch_order(
    rows: Int[np.ndarray, " R"],
    groups: Int[np.ndarray, " R"] | None,
    samples_per_group: int,
    epoch: int,
    seed: int,
) -> Int[np.ndarray, " S"]:
    """`rows` shuffled for this epoch; with `groups`, in pieces of `each` rows of one group.

    A group's rows are shuffled and cut into pieces, the last filled up from its first rows. Its pieces lie evenly over
    the epoch from a random start, so that two meet in a batch only where the group is a large part of the data.
    """
    rng = generator(seed, epoch)
    shuffled = torch.randperm(len(rows), generator=rng).numpy()
    if groups is None:
        return rows[shuffled]
    together = shuffled[np.argsort(groups[shuffled], kind="stable")]
    _, first, count = np.unique(groups[together], return_index=True, return_counts=True)
    pieces = -(-count // samples_per_group)  # of each group
    group = np.repeat(np.arange(len(count)), pieces)
    number = np.arange(len(group)) - np.repeat(pieces.cumsum() - pieces, pieces)
    place = (number[:, None] * samples_per_group + np.arange(samples_per_group)) % count[group][
        :, None
    ]
    start = torch.rand(len(count), generator=rng, dtype=torch.float64).numpy()
    when = (number + start[group]) / pieces[group]
    return rows[together[first[group][:, None] + place]][when.argsort(kind="stable")].reshape(-1)

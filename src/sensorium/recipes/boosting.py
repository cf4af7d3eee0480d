"""Trees boosted on what a trained model makes of a row: LightGBM grows them, `sensorium.trees` answers from them.

    N rows   F features   K numbers that a head says   S shares
"""
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sensorium.adapt import Still
from sensorium.data.cache import Prepared
from sensorium.data.splits import spaced
from sensorium.errors import SensoriumError
from sensorium.fused import Fused
from sensorium.measures import Measures, measurable, measured
from sensorium.modalities.image import Image
from sensorium.modalities.modality import Modality
from sensorium.modalities.table import Category, Number, Ordinal
from sensorium.objectives.supervised import Supervised
from sensorium.recipes.prediction import SIZE, joined, loss_of
from sensorium.recipes.recipe import BadKeyword, OnEnd
from sensorium.tokens import Batch
from sensorium.trees import LIKE, Boosted

ROUNDS, PATIENCE = 1000, 50                 # trees at most, and how many that do not help before it stops
MOST = 200_000                              # training rows that trees are grown on
GROWN = {"learning_rate": 0.05, "num_leaves": 31, "feature_fraction": 0.7, "bagging_fraction": 0.8, "bagging_freq": 1,
         "verbosity": -1, "deterministic": True, "force_row_wise": True, "seed": 0}
ENOUGH = 20_000                             # that say in which directions pictures differ
LACKED = 0.02                               # a column missing in so many training rows is one that trees know without
SHARES = [i / 20 for i in range(21)]        # of the trees in what is said, that are tried


def with_trees(model: Fused, reads: Mapping[str, Modality], aims: Mapping[str, Modality], dim: int) -> None:
    """Give a model a second head for each target. Raises BadKeyword where trees are not for that kind of target."""
    still = {name for name, sense in zip(model.names, model.senses, strict=True)
             if any(isinstance(part, Still) for part in sense.modules())}   # their values may have been read before
    for name, of in aims.items():
        if isinstance(of, Ordinal) or not isinstance(of, Category | Number):
            raise BadKeyword(f"head='boosting' grows trees for numbers and classes; the target {name!r} is {of.kind}: "
                             "take head='linear' (--head linear)")
        single = {column: reads[column] for column in model.columns[len(model.names):]}
        measures = Measures({column: reads[column] for column in model.names
                             if measurable(reads[column]) and column not in still})
        model.boosted.append(Boosted(of, model.columns, single, measures, dim))


def grown(objective: Supervised, aims: Mapping[str, Modality]) -> OnEnd[Fused]:
    """Grow the trees of each target once its model is trained, and weigh them against the linear head.

    Validation rows say when to stop, whether measures and the fused vector help beside single values, and how much
    trees count. Returned are, for each target, the losses on validation rows of the linear head and of the trees alone,
    each calibrated, and the share of the trees.
    """
    def finish(model: Fused, prepared: Prepared, rows: np.ndarray, validation: np.ndarray) -> dict[str, float]:
        figures: dict[str, float] = {}
        learn = spaced(rows, MOST)
        _measure(model, prepared, spaced(rows, ENOUGH))
        train, some = _Seen(model, prepared, learn), _Seen(model, prepared, validation)
        for name, second in zip(aims, model.boosted, strict=True):
            assert isinstance(second, Boosted)
            found = _Growing(second, name, objective, train, some).best()
            told = {"linear val_loss": found[0], "trees val_loss": found[1], "share of trees": found[2]}
            figures |= {what if len(aims) == 1 else f"{name} {what}": value for what, value in told.items()}
        return figures
    return finish


@torch.no_grad()
def _measure(model: Fused, prepared: Prepared, rows: np.ndarray) -> None:
    """Have the measures of pictures know in which directions training rows differ."""
    first = model.boosted[0]
    assert isinstance(first, Boosted)
    found: dict[str, list[Tensor]] = {name: [] for name, of in first.measures.columns.items() if isinstance(of, Image)}
    for start in range(0, len(rows) if found else 0, SIZE):
        given = prepared.batch(rows[start:start + SIZE])
        there = dict(zip(model.columns, model.there(given).unbind(1), strict=True))
        for name, several in found.items():
            several.append(measured(first.measures.columns[name], given[name][there[name]]))
    for second in model.boosted:
        assert isinstance(second, Boosted)
        second.measures.fit([torch.cat(several) for several in found.values()])


class _Seen:
    """What a model makes of rows: what trees see of them, what the linear heads say, the targets, and which of their
    values are there. Rows without any are left out."""

    @torch.no_grad()
    def __init__(self, model: Fused, prepared: Prepared, rows: np.ndarray):
        second = model.boosted[0]
        assert isinstance(second, Boosted)
        features, said, true, held = [], [], [], []
        for start in range(0, len(rows), SIZE):
            given = prepared.batch(rows[start:start + SIZE])
            there, parts = model.there(given), model.read(given)
            if parts:
                keep, known = there.any(1), dict(zip(model.columns, there.unbind(1), strict=True))
                x, _ = model.whole(parts)
                features.append(second.features(given.columns, known, x)[keep])
                held.append(there[keep])
                said.append({name: values[keep] for name, values in model.answer(parts, len(there)).items()})
                true.append(given.only(model.targets).take(keep))
        self.features, self.there = torch.cat(features), torch.cat(held)
        self.said, self.true = joined(said), Batch.joined(true)


class _Growing:
    """Trees of one target, grown on some rows and judged on others."""

    def __init__(self, second: Boosted, name: str, objective: Supervised, train: _Seen, val: _Seen):
        self.second, self.of, self.kind = second, second.of, objective.targets[name]
        rows, val_rows = objective.known(name, train.true), objective.known(name, val.true)
        self.x, self.y, there = train.features[rows], train.true[name][rows], train.there[rows]
        self.val_x, self.val_y, val_there = val.features[val_rows], val.true[name][val_rows], val.there[val_rows]
        self.linear = val.said[name][val_rows]
        second.lacked.copy_((~there).float().mean(0) >= LACKED)
        self.known = second.known(val_there)
        if not len(self.val_y):
            raise SensoriumError(f"no validation row has the target {name!r}: nothing says when to stop growing trees")

    def best(self) -> tuple[float, float, float]:
        """Keep the trees and the share that say validation rows best; (the linear loss, the trees' own, the share)."""
        tried, shares = [], self._shares()
        for features in dict.fromkeys(size for size in self.second.sizes if size):
            trees = self._trees(features)
            self.second.trees.take(trees)
            says = self.second.trees(self.val_x)
            losses = [self._loss(self.second.weighed(self.linear, says, weights, self.known)) for weights in shares]
            tried.append((min(losses), losses, trees))
        _, losses, trees = min(tried, key=lambda one: one[0])
        best = int(np.argmin(losses))
        self.second.trees.take(trees)
        self.second.share.copy_(shares[best])
        return losses[0], losses[-1], SHARES[best]

    def _shares(self) -> Float[Tensor, "S 3"]:
        """Of the linear head, made as sure of itself as it should be, of the trees, and of the linear head alone."""
        sure = loss_of(self.kind, self.of, self.linear, self.val_y)[1].scale if isinstance(self.of, Category) else 1.0
        return torch.tensor([[(1 - share) / float(sure), share, 1 / float(sure)] for share in SHARES])

    def _loss(self, said: Tensor) -> float:
        return loss_of(self.kind, self.of, said, self.val_y)[0]

    def _trees(self, features: int) -> dict[str, Tensor]:
        """Grown on the first so many features."""
        import lightgbm
        classes = len(self.of.classes) if isinstance(self.of, Category) else 0
        what = {0: {"objective": "regression"}, 2: {"objective": "binary"}}.get(
            classes, {"objective": "multiclass", "num_class": classes})
        train = lightgbm.Dataset(self.x[:, :features].numpy(), self.y.numpy())
        val = lightgbm.Dataset(self.val_x[:, :features].numpy(), self.val_y.numpy(), reference=train)
        made = lightgbm.train({**GROWN, **what, "num_threads": torch.get_num_threads()}, train, ROUNDS, [val],
                              callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)])
        return flat(made.dump_model(num_iteration=made.best_iteration)["tree_info"])


def flat(trees: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Trees as LightGBM tells of them, as the buffers of `Trees`.

    A value that is missing goes where LightGBM learned to send it, or else, where it met none, the way of most rows.
    """
    nodes: list[tuple[int, float, bool]] = []
    ways: list[list[int]] = []
    leaves: list[float] = []

    def count(node: dict[str, Any]) -> int:
        return node.get("internal_count", node.get("leaf_count", 0))

    def add(node: dict[str, Any]) -> int:
        if "leaf_value" in node:
            leaves.append(node["leaf_value"])
            return -len(leaves)
        two, at = (node["left_child"], node["right_child"]), len(nodes)
        learned = node["missing_type"] == "NaN"
        goes_left = node["default_left"] if learned else count(two[0]) >= count(two[1])
        nodes.append((node["split_feature"], node["threshold"], goes_left))
        ways.append([])
        ways[at] = [add(child) for child in two]
        return at

    root = [add(tree["tree_structure"]) for tree in trees]
    feature, threshold, missing = zip(*nodes, strict=True) if nodes else ((), (), ())
    left, right = zip(*ways, strict=True) if ways else ((), ())
    found = {"root": root, "feature": feature, "left": left, "right": right, "missing": missing,
             "threshold": threshold, "leaf": leaves}
    return {name: torch.tensor(values, dtype=LIKE[name]) for name, values in found.items()}

"""What the linear model and the trees read of each row, fitted and collected from a dataset.

N rows   C columns   F features
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sensorium.data.batching import iter_batches
from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.splits import sample_evenly
from sensorium.errors import SensoriumError, require_type
from sensorium.evaluation.validate_prediction import BATCH_SIZE, concat_batches
from sensorium.modalities.image import Image
from sensorium.models.blended_heads import (
    TEXT_COMPONENTS,
    BlendedHeads,
    LinearModel,
    TextComponents,
)
from sensorium.models.handcrafted_features import compute_features
from sensorium.models.multimodal_predictor import MultimodalPredictor, drop_values
from sensorium.models.tfidf import TfidfFeatures
from sensorium.models.wide_features import MAX_LINEAR_WEIGHTS, MAX_TEXT_FEATURES, WideRows
from sensorium.nn.sparse import SparseRows
from sensorium.nn.tokens import Batch
from sensorium.recipes.text_components import principal_components

MAX_SAMPLED_ROWS = 20_000  # rows that scales and principal components are fitted on


def fit_ngrams(blended: BlendedHeads, prepared: PreparedDataset, rows: np.ndarray) -> None:
    """Select the n-grams of each text column on training rows."""
    wide = blended.wide
    num_outputs = sum(len(require_type(part, LinearModel).bias) for part in blended.linear)
    share = MAX_LINEAR_WEIGHTS // max(1, num_outputs * len(wide.text_columns))
    for name, tfidf in zip(wide.text_columns, wide.texts, strict=True):
        values = prepared.iter_values(name, rows)
        require_type(tfidf, TfidfFeatures).fit(values, min(MAX_TEXT_FEATURES, max(1, share)))


def fit_features(model: MultimodalPredictor, prepared: PreparedDataset, rows: np.ndarray) -> None:
    """Fit standardization, and principal components of images and texts, on training rows."""
    blended = require_type(model.blended, BlendedHeads)
    wide, handcrafted = blended.wide, blended.tree_features.handcrafted
    count, total, squares = (torch.zeros(wide.num_dense, dtype=torch.float64) for _ in range(3))
    images: dict[str, list[Tensor]] = {
        name: [] for name, m in handcrafted.columns.items() if isinstance(m, Image)
    }
    texts: list[list[SparseRows]] = [[] for _ in wide.text_columns]
    for batch, present in _iter_batches(model, prepared, sample_evenly(rows, MAX_SAMPLED_ROWS)):
        for parts, rows_of_text in zip(
            texts, wide.encode_texts(batch.columns, present), strict=True
        ):
            parts.append(rows_of_text)
        dense, mask = wide.raw_dense(batch.columns, present)
        count += mask.sum(0)
        total += dense.double().sum(0)
        squares += dense.double().square().sum(0)
        for name, values in images.items():
            values.append(compute_features(handcrafted.columns[name], batch[name][present[name]]))
    mean = total / count.clamp(min=1)
    variance = (squares / count.clamp(min=1) - mean.square()).clamp(min=0)
    wide.fit_scale(mean.float(), variance.sqrt().float())
    handcrafted.fit([torch.cat(values) for values in images.values()])
    for parts, width, module in zip(
        texts, wide.text_widths, blended.tree_features.text_components, strict=True
    ):
        weight = principal_components(SparseRows.concat(parts), width, TEXT_COMPONENTS)
        require_type(module, TextComponents).load_buffers({"weight": weight})


def _iter_batches(
    model: MultimodalPredictor, prepared: PreparedDataset, rows: np.ndarray
) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    """Yield batches with the presence of each column."""
    for batch_rows in iter_batches(rows, BATCH_SIZE):
        batch = prepared.batch(batch_rows)
        yield batch, dict(zip(model.columns, model.presence(batch).unbind(1), strict=True))


@dataclass(frozen=True)
class PartInputs:
    """What the parts read of rows with any value, and the network's outputs for them.

    Attributes:
        wide: features of the linear model.
        trees: [N F] features of the trees.
        present: [N C] which input columns have a value.
        logits: outputs of the network by target.
        targets: the target columns.
    """

    wide: WideRows
    trees: Float[Tensor, "N F"]
    present: Bool[Tensor, "N C"]
    logits: dict[str, Tensor]
    targets: Batch

    @classmethod
    def compute(
        cls,
        model: MultimodalPredictor,
        prepared: PreparedDataset,
        rows: np.ndarray,
        hiding_seed: int | None = None,
    ) -> "PartInputs":
        """Return the outputs for rows, with values hidden at random if there is a seed."""
        batches: list[PartInputs] = []
        rng_state = torch.get_rng_state()
        if hiding_seed is not None:
            torch.manual_seed(hiding_seed)
        for batch, _ in _iter_batches(model, prepared, rows):
            if hiding_seed is not None:
                kept = drop_values(model.presence(batch), 1.0)
                hidden = dict(zip(model.columns, kept.unbind(1), strict=True))
                batch = batch.with_columns(present={**batch.present, **hidden})
            if model.presence(batch).any():
                batches.append(cls._of_batch(model, batch))
        torch.set_rng_state(rng_state)
        if not batches:
            raise SensoriumError("No training or validation row has a value in any input column.")
        return cls(
            WideRows.concat([batch.wide for batch in batches]),
            torch.cat([batch.trees for batch in batches]),
            torch.cat([batch.present for batch in batches]),
            concat_batches([batch.logits for batch in batches]),
            Batch.concat([batch.targets for batch in batches]),
        )

    @classmethod
    def _of_batch(cls, model: MultimodalPredictor, batch: Batch) -> "PartInputs":
        blended = require_type(model.blended, BlendedHeads)
        presence = model.presence(batch)
        parts = model.encode_inputs(batch)
        fused, _ = model.fuse_parts(parts)
        logits = model.predict_targets(parts, len(presence))
        by_column = dict(zip(model.columns, presence.unbind(1), strict=True))
        texts = blended.wide.encode_texts(batch.columns, by_column)
        trees = blended.tree_features(batch.columns, by_column, texts, fused)
        has_values = presence.any(1)
        return cls(
            blended.wide(batch.columns, by_column, texts).take(has_values),
            trees[has_values],
            presence[has_values],
            {name: values[has_values] for name, values in logits.items()},
            batch.select(model.targets).take(has_values),
        )

"""A linear model and boosted trees beside a network, and the weights by which they are blended.

B batch   C columns   F features   D width of the fused vector   R components of a text
K outputs of a head   O outputs of trees: K, or 1 for two classes and for numbers
P parts: network, linear, boosting
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sensorium.modalities.base import Modality
from sensorium.modalities.tabular import Category, Numeric, Ordinal
from sensorium.modalities.tabular_embedding import SCALAR_KINDS
from sensorium.models.boosted_trees import Trees, num_tabular_features, tabular_features
from sensorium.models.handcrafted_features import HandcraftedFeatures, has_handcrafted_features
from sensorium.models.wide_features import PresenceMasks, WideFeatures, WideRows
from sensorium.nn.sparse import SparseRows
from sensorium.nn.tokens import ColumnKey

PARTS = ("network", "linear", "boosting")
NETWORK, LINEAR, BOOSTING = range(len(PARTS))
TEXT_COMPONENTS = 32  # features of a text column for trees


class LinearModel(nn.Module):
    """Outputs that are linear in the wide features; zero until it is fitted.

    Args:
        num_outputs: K.

    Attributes:
        weight: [F K] Weights, of which a new model has none.
        bias: [K] Outputs of a row without any value.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, num_outputs: int):
        super().__init__()
        self.weight = nn.Buffer(torch.zeros(0, num_outputs))
        self.bias = nn.Buffer(torch.zeros(num_outputs))

    @property
    def is_fitted(self) -> bool:
        """Whether it has weights."""
        return len(self.weight) > 0

    def load_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Replace the weights.

        Raises:
            ValueError: If they have another number of outputs, or are not finite.
        """
        weight = buffers.get("weight", torch.zeros(0))
        bias = buffers.get("bias", torch.zeros(0))
        if bias.shape != self.bias.shape or weight.shape[1:] != bias.shape:
            raise ValueError("The weights of the linear model have the wrong number of outputs.")
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise ValueError("A weight of the linear model is not finite.")
        self.weight, self.bias = weight, bias

    def forward(self, x: WideRows) -> Float[Tensor, "B K"]:
        """Return the outputs; those of a row without any value for all rows if not fitted."""
        if not self.is_fitted:
            return self.bias.expand(len(x), -1)
        return x.matmul(self.weight) + self.bias


class TreeFeatures(nn.Module):
    """Dense features for trees, NaN where a value is missing.

    They are scalar columns, handcrafted features of images and series, principal components of
    texts and, for some models, the fused vector.

    Args:
        columns: Settings of the columns; those without features are left out.
        text_columns: The text columns.
        fused_width: D; 0: without the fused vector.

    Attributes:
        widths: Number of features of the scalar columns, with handcrafted features and texts, and
            in all.
        text_components: Components of each text column.
    """

    def __init__(
        self, columns: Mapping[str, Modality], text_columns: Sequence[str], fused_width: int
    ):
        super().__init__()
        self.scalar_columns = {n: m for n, m in columns.items() if m.kind in SCALAR_KINDS}
        self.handcrafted = HandcraftedFeatures(
            {name: m for name, m in columns.items() if has_handcrafted_features(m)}
        )
        self.text_columns = list(text_columns)
        self.text_components = nn.ModuleList(TextComponents() for _ in text_columns)
        num_scalar = sum(map(num_tabular_features, self.scalar_columns.values()))
        num_simple = num_scalar + self.handcrafted.num_features
        num_simple += TEXT_COMPONENTS * len(self.text_columns)
        self.uses_fused = fused_width > 0
        self.widths = [num_scalar, num_simple, num_simple + fused_width]

    def forward(
        self,
        inputs: Mapping[ColumnKey, Tensor],
        present: PresenceMasks,
        texts: Sequence[SparseRows],
        fused: Float[Tensor, "B D"],
    ) -> Float[Tensor, "B F"]:
        """Return the features of a batch.

        Args:
            inputs: The columns of the batch.
            present: Which rows have a value of each column.
            texts: TF-IDF of each text column.
            fused: The fused vector of each row.
        """
        parts = [
            tabular_features(self.scalar_columns, inputs, present),
            self.handcrafted(inputs, present),
        ]
        for name, rows, module in zip(self.text_columns, texts, self.text_components, strict=True):
            values = cast("TextComponents", module)(rows)
            parts.append(values.masked_fill(~present[name][:, None], torch.nan))
        if self.uses_fused:
            parts.append(fused.float())
        return torch.cat(parts, 1)


class TextComponents(nn.Module):
    """Principal components of the TF-IDF features of a text column; zeros until fitted.

    Attributes:
        weight: [F R] The components.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Buffer(torch.zeros(0, TEXT_COMPONENTS))

    def load_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Replace the components.

        Raises:
            ValueError: If there are not R of them, or they are not finite.
        """
        weight = buffers.get("weight", torch.zeros(0))
        if weight.dim() != 2 or weight.shape[1] != TEXT_COMPONENTS or not weight.isfinite().all():
            raise ValueError("The components of a text column have the wrong size.")
        self.weight = weight

    def forward(self, rows: SparseRows) -> Float[Tensor, "B R"]:
        """Return the coordinates of rows."""
        if not len(self.weight):
            return rows.value.new_zeros(rows.rows, TEXT_COMPONENTS)
        return rows.matmul(self.weight)


class BlendedHeads(nn.Module):
    """For each target a linear model and boosted trees, blended with the network's head.

    Trees answer only rows whose missing columns were also missing in training rows, and such rows
    have weights of their own. Until the parts are fitted, the network answers alone.

    Args:
        columns: All C columns of the model.
        inputs: Settings of the columns whose values the parts may read.
        targets: Settings of the targets.
        num_outputs: K of each target.
        fused_width: D, if trees may read the fused vector; else 0.

    Attributes:
        missing_ok: [C] Columns that many training rows lack.
        weights: [targets 2 P] Weights of the parts' outputs, in rows that lack no more than
            training rows did, and in others.
        scales: [targets P] Temperature of each part by itself.
    """

    def __init__(
        self,
        columns: Sequence[str],
        inputs: Mapping[str, Modality],
        targets: Mapping[str, Modality],
        num_outputs: Sequence[int],
        fused_width: int = 0,
    ):
        super().__init__()
        self.columns = list(columns)
        self.targets = dict(targets)
        self.wide = WideFeatures(inputs)
        self.tree_features = TreeFeatures(inputs, list(self.wide.text_columns), fused_width)
        self.linear = nn.ModuleList(
            LinearModel(num_linear_outputs(target, size))
            for target, size in zip(targets.values(), num_outputs, strict=True)
        )
        num_features = self.tree_features.widths[-1]
        self.trees = nn.ModuleList(
            Trees(num_features, num_tree_outputs(target)) for target in targets.values()
        )
        self.missing_ok = nn.Buffer(torch.zeros(len(columns), dtype=torch.bool))
        alone = [float(i == NETWORK) for i in range(len(PARTS))]
        self.weights = nn.Buffer(torch.tensor([[alone, alone] for _ in targets]))
        self.scales = nn.Buffer(torch.ones(len(targets), len(PARTS)))

    def load_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Check that the sizes of the parts' tensors match; the parts load their own.

        Raises:
            ValueError: If they do not match.
        """
        text_widths = [
            len(buffers.get(f"wide.texts.{i}.idf", ())) for i in range(len(self.wide.texts))
        ]
        width = self.wide.num_dense + sum(self.wide.class_widths) + sum(text_widths)
        for i in range(len(self.targets)):
            if len(buffers.get(f"linear.{i}.weight", ())) not in (0, width):
                raise ValueError("The weights of the linear model do not match its features.")
        for i, text_width in enumerate(text_widths):
            if len(buffers.get(f"tree_features.text_components.{i}.weight", ())) not in (
                0,
                text_width,
            ):
                raise ValueError("The components of a text column do not match its n-grams.")

    @property
    def is_used(self) -> bool:
        """Whether another part than the network has a weight."""
        return bool((self.weights[..., LINEAR:] != 0).any())

    def forward(
        self,
        network: Mapping[str, Float[Tensor, "B K"]],
        inputs: Mapping[ColumnKey, Tensor],
        present: Bool[Tensor, "B C"],
        fused: Float[Tensor, "B D"],
    ) -> dict[str, Float[Tensor, "B K"]]:
        """Return the blended outputs for each target.

        Args:
            network: Outputs of the network.
            inputs: The columns of the batch.
            present: Which columns have a value in each row.
            fused: The fused vector of each row.
        """
        if not self.is_used:
            return dict(network)
        used = [bool((self.weights[..., i] != 0).any()) for i in range(len(PARTS))]
        parts = self.predict_parts(network, inputs, present, fused, used)
        applicable = self.applicable(present)
        return {
            name: self.blend(i, outputs, self.weights[i], applicable)
            for i, (name, outputs) in enumerate(parts.items())
        }

    def predict_parts(
        self,
        network: Mapping[str, Float[Tensor, "B K"]],
        inputs: Mapping[ColumnKey, Tensor],
        present: Bool[Tensor, "B C"],
        fused: Float[Tensor, "B D"],
        used: Sequence[bool] = (True, True, True),
    ) -> dict[str, list[Tensor]]:
        """Return the outputs of each part for each target; those of unused parts are zero."""
        masks = dict(zip(self.columns, present.unbind(1), strict=True))
        texts = self.wide.encode_texts(inputs, masks)
        wide = self.wide(inputs, masks, texts) if used[LINEAR] else None
        features = None
        if used[BOOSTING]:
            features = self.tree_features(inputs, masks, texts, fused)
        result: dict[str, list[Tensor]] = {}
        for i, (name, target) in enumerate(self.targets.items()):
            logits = network[name]
            _, has_linear, has_trees = self.is_fitted(i)
            outputs = [logits, torch.zeros_like(logits), torch.zeros_like(logits)]
            if wide is not None and has_linear:
                outputs[LINEAR] = expand_linear(self.linear[i](wide), logits)
            if features is not None and has_trees:
                outputs[BOOSTING] = expand_trees(target, self.trees[i](features).float(), logits)
            result[name] = outputs
        return result

    def applicable(self, present: Bool[Tensor, "B C"]) -> Bool[Tensor, "B"]:
        """Return whether each row lacks only columns that many training rows lack."""
        return (present | self.missing_ok).all(1)

    def blend(
        self,
        target: int,
        outputs: Sequence[Float[Tensor, "B K"]],
        weights: Float[Tensor, "2 P"],
        applicable: Bool[Tensor, "B"],
    ) -> Float[Tensor, "B K"]:
        """Return the weighted sum of the parts' outputs; of numbers, of their means only.

        Args:
            target: Index of the target.
            outputs: Outputs of each part.
            weights: Weights in rows where trees are applicable, and in others.
            applicable: Which rows these are.
        """
        by_row = torch.where(applicable[:, None], weights[0], weights[1])
        total = sum(
            (by_row[:, i : i + 1] * output for i, output in enumerate(outputs)),
            torch.zeros_like(outputs[NETWORK]),
        )
        if isinstance([*self.targets.values()][target], Numeric):
            return torch.cat([total[:, :1], outputs[NETWORK][:, 1:]], 1)
        return total

    def is_fitted(self, target: int) -> list[bool]:
        """Return which parts of a target are fitted."""
        linear = cast("LinearModel", self.linear[target])
        return [True, linear.is_fitted, len(self.trees[target].get_buffer("root")) > 0]


def expand_linear(
    output: Float[Tensor, "B O"], network: Float[Tensor, "B K"]
) -> Float[Tensor, "B K"]:
    """Return a linear model's output with the network's log variance, if it has none."""
    return torch.cat([output, network[:, output.shape[1] :]], 1)


def expand_trees(
    target: Modality, output: Float[Tensor, "B O"], network: Float[Tensor, "B K"]
) -> Float[Tensor, "B K"]:
    """Return the trees' output in the form of the network's.

    For numbers trees predict the mean only; for two classes, the logit of the second.
    """
    if isinstance(target, Category) and output.shape[1] < network.shape[1]:
        return torch.cat([-output, output], 1) / 2
    return torch.cat([output, network[:, output.shape[1] :]], 1)


def num_linear_outputs(target: Modality, num_outputs: int) -> int:
    """Return the number of outputs of the linear model: of a number, the mean only."""
    return 1 if isinstance(target, Numeric) else num_outputs


def num_tree_outputs(target: Modality) -> int:
    """Return the number of outputs of trees."""
    num_classes = len(target.classes) if isinstance(target, Category) else 0
    return num_classes if num_classes > 2 else 1


def supports_trees(target: Modality) -> bool:
    """Return whether boosted trees predict a target: classes and numbers."""
    return isinstance(target, Numeric | Category) and not isinstance(target, Ordinal)

"""Contrastive losses of paired columns: InfoNCE (CLIP) or one sigmoid per pair (SigLIP).

B batch   C captions of a batch   E width of the shared space   T tokens of the first column
S tokens of the second column   K texts of a row   N texts   U distinct texts

With projected tokens, half of the similarity is the late interaction of FILIP (Yao et al. 2021):
each token's best match among the tokens of the other side, averaged over real tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sensorium.models.towers import Tower, TowerOutput, Towers
from sensorium.nn.tokens import Batch, ColumnKey, Tokens, valid_mask

CONTRASTIVE_LOSSES = ("infonce", "siglip")


@dataclass(frozen=True)
class ContrastiveLoss:
    """Contrastive loss of the pairs (a, b) in each row of a batch.

    Rows of one group, and rows with the same text, are positives of each other rather than
    negatives. Rows in which one of the two is missing are left out. Column `b` may hold several
    texts per row, [B K T]: each is a positive of its row.

    Attributes:
        a: First column.
        b: Second column.
        loss: `infonce` or `siglip`.
        label_smoothing: Label smoothing of InfoNCE.
    """

    a: ColumnKey
    b: ColumnKey
    loss: str = "infonce"
    label_smoothing: float = 0.0

    def __call__(self, model: Towers, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of a batch; zero where no row has both columns."""
        batch = drop_incomplete_rows(batch, self.a, self.b)
        if not len(batch):
            return {"model": model.logit_scale.sum() * 0}
        a, b = self._encode(model, batch)
        return {"model": self.compute_loss(model, a, b, positive_mask(batch, self.a, self.b))}

    def compute_loss(
        self, model: Towers, a: TowerOutput, b: TowerOutput, positive_mask: Bool[Tensor, "B C"]
    ) -> Float[Tensor, ""]:
        """Return the loss of encoded pairs, the mean of both directions.

        Args:
            model: The towers, for their logit scale and bias.
            a: Embeddings of the first column.
            b: Embeddings of the second column.
            positive_mask: True where a row of `a` and a row of `b` belong together.

        Raises:
            ValueError: The loss is `siglip`, but the towers have no logit bias.
        """
        a_to_b, b_to_a = similarity(a, b)
        scale = model.logit_scale.exp()
        if self.loss == "siglip":
            if model.logit_bias is None:
                raise ValueError("The siglip loss needs towers with a logit bias.")
            # One pair in N matches: the bias starts at these odds.
            bias = model.logit_bias - math.log(max(1, len(positive_mask) - 1))
            forward = sigmoid_loss(scale * a_to_b + bias, positive_mask)
            backward = sigmoid_loss(scale * b_to_a + bias, positive_mask.T)
        else:
            forward = infonce(scale * a_to_b, positive_mask, self.label_smoothing)
            backward = infonce(scale * b_to_a, positive_mask.T, self.label_smoothing)
        return (forward + backward) / 2

    def accumulate(self, model: Towers, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Add the gradients of one large batch, split into micro-batches, to the parameters.

        GradCache (Gao et al. 2021) in three passes: every pair of all micro-batches is a negative,
        with memory for the graph of one micro-batch. Dropout is the same in both encoding passes.

        Returns:
            The loss of the large batch, without a graph.
        """
        batches = [drop_incomplete_rows(batch, self.a, self.b) for batch in batches]
        batches = [batch for batch in batches if len(batch)]
        if not batches:
            return {"model": torch.zeros(())}
        rng_states, outputs = self._encode_without_graph(model, batches)
        rng_state_after = torch.get_rng_state()
        loss, full_outputs = self._backward_to_outputs(model, batches, outputs)
        self._backward_to_parameters(model, batches, rng_states, full_outputs)
        torch.set_rng_state(rng_state_after)
        return {"model": loss.detach()}

    def _encode(self, model: Towers, batch: Batch) -> tuple[TowerOutput, TowerOutput]:
        """Encode both columns."""
        return (
            encode_unique(model[self.a], batch[self.a]),
            encode_unique(model[self.b], batch[self.b]),
        )

    @torch.no_grad()
    def _encode_without_graph(
        self, model: Towers, batches: Sequence[Batch]
    ) -> tuple[list[Tensor], list[tuple[TowerOutput, TowerOutput]]]:
        """Pass 1: encode each micro-batch and return the random states before and the outputs."""
        rng_states: list[Tensor] = []
        outputs: list[tuple[TowerOutput, TowerOutput]] = []
        for batch in batches:
            rng_states.append(torch.get_rng_state())
            outputs.append(self._encode(model, batch))
        return rng_states, outputs

    def _backward_to_outputs(
        self,
        model: Towers,
        batches: Sequence[Batch],
        outputs: Sequence[tuple[TowerOutput, TowerOutput]],
    ) -> tuple[Tensor, tuple[TowerOutput, TowerOutput]]:
        """Pass 2: compute the loss of all outputs and its gradients with respect to them."""
        a = _concat_as_leaf([output_a for output_a, _ in outputs])
        b = _concat_as_leaf([output_b for _, output_b in outputs])
        positives = positive_mask(_concat_batches(batches), self.a, self.b)
        loss = self.compute_loss(model, a, b, positives)
        torch.autograd.backward(loss)
        return loss, (a, b)

    def _backward_to_parameters(
        self,
        model: Towers,
        batches: Sequence[Batch],
        rng_states: Sequence[Tensor],
        full_outputs: tuple[TowerOutput, TowerOutput],
    ) -> None:
        """Pass 3: encode each micro-batch again, and backpropagate its share of the gradients."""
        starts = [0, 0]
        for batch, rng_state in zip(batches, rng_states, strict=True):
            torch.set_rng_state(rng_state)
            tensors: list[Tensor] = []
            grads: list[Tensor] = []
            for side, output in enumerate(self._encode(model, batch)):
                for tensor, grad in _output_gradients(full_outputs[side], output, starts[side]):
                    tensors.append(tensor)
                    grads.append(grad)
                starts[side] += len(output.vector)
            torch.autograd.backward(tensors, grads)


def encode_unique(tower: Tower, values: Tensor) -> TowerOutput:
    """Encode each row, or each text where a row has several; equal texts are encoded once."""
    if values.is_floating_point():
        return tower.encode(values)
    values = values.flatten(0, -2)
    unique, index = _unique_rows(values)
    if len(unique) == len(values):
        return tower.encode(values)
    output = tower.encode(unique)
    if output.tokens is None:
        return TowerOutput(output.vector[index])
    t = output.tokens
    tokens = Tokens(t.x[index], t.pos[index], None, valid_mask(t)[index])
    return TowerOutput(output.vector[index], tokens)


def drop_incomplete_rows(batch: Batch, *columns: ColumnKey) -> Batch:
    """Return the rows of a batch in which none of `columns` is missing."""
    masks = [batch.present[c] for c in columns if c in batch.present]
    if not masks or torch.stack(masks).all():
        return batch
    return batch.take(torch.stack(masks).all(0))


def positive_mask(batch: Batch, a: ColumnKey, b: ColumnKey) -> Bool[Tensor, "B C"]:
    """Return which rows of `a` belong to which texts (or rows) of `b`.

    These are the pairs of one row, of one group, and those that share a text in either column.
    """
    values_a = batch[a]
    values_b = batch[b]
    same_row = torch.eye(len(values_a), dtype=torch.bool, device=values_a.device)
    if batch.group is not None:
        same_row = same_row | (batch.group[:, None] == batch.group)
    if values_a.ndim == 2 and not values_a.is_floating_point():
        same_row = same_row | (values_a[:, None] == values_a).all(-1)
    if values_b.ndim not in (2, 3) or values_b.is_floating_point():
        return same_row
    _, index = _unique_rows(values_b.flatten(0, -2))
    text_id = index.view(len(values_b), -1)
    same_text = (text_id[:, :, None] == text_id.flatten()).any(1)
    return same_text | same_row.repeat_interleave(text_id.shape[1], 1)


def similarity(a: TowerOutput, b: TowerOutput) -> tuple[Float[Tensor, "B C"], Float[Tensor, "C B"]]:
    """Return the cosine similarities of a to b and of b to a.

    They are transposes of each other unless tokens are compared.
    """
    cosine = a.vector @ b.vector.T
    if a.tokens is None or b.tokens is None:
        return cosine, cosine.T
    pairs = torch.einsum("ite,jse->ijts", a.tokens.x, b.tokens.x)
    valid_a = valid_mask(a.tokens)
    valid_b = valid_mask(b.tokens)
    best_b = pairs.masked_fill(~valid_b[None, :, None, :], -1).amax(3) * valid_a[:, None]
    best_a = pairs.masked_fill(~valid_a[:, None, :, None], -1).amax(2) * valid_b
    tokens_a_to_b = best_b.sum(2) / valid_a.sum(1).clamp(min=1)[:, None]
    tokens_b_to_a = (best_a.sum(2) / valid_b.sum(1).clamp(min=1)).T
    return (cosine + tokens_a_to_b) / 2, (cosine.T + tokens_b_to_a) / 2


def infonce(
    logits: Float[Tensor, "B C"], positive_mask: Bool[Tensor, "B C"], label_smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Return the cross-entropy of each row against its positives, all of them equally likely."""
    target = positive_mask / positive_mask.sum(1, keepdim=True)
    return F.cross_entropy(logits, target.to(logits.dtype), label_smoothing=label_smoothing)


def sigmoid_loss(
    logits: Float[Tensor, "B C"], positive_mask: Bool[Tensor, "B C"]
) -> Float[Tensor, ""]:
    """Return the binary loss summed over pairs and divided by B, not by B² (Zhai et al. 2023)."""
    return -F.logsigmoid(torch.where(positive_mask, logits, -logits)).sum() / len(logits)


def _unique_rows(values: Int[Tensor, "N T"]) -> tuple[Int[Tensor, "U T"], Int[Tensor, "N"]]:
    """Return the distinct rows, and the index among them of each row."""
    unique, index = torch.unique(values, dim=0, return_inverse=True)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return cast("Tensor", unique), cast("Tensor", index)


def _concat_as_leaf(outputs: Sequence[TowerOutput]) -> TowerOutput:
    """Concatenate a tower's outputs of several batches into leaf tensors that collect gradients."""
    vector = torch.cat([output.vector for output in outputs]).requires_grad_()
    tokens = [output.tokens for output in outputs if output.tokens is not None]
    if not tokens:
        return TowerOutput(vector)
    longest = max(t.x.shape[1] for t in tokens)
    x = torch.cat([F.pad(t.x, (0, 0, 0, longest - t.x.shape[1])) for t in tokens]).requires_grad_()
    valid = torch.cat([F.pad(valid_mask(t), (0, longest - t.x.shape[1])) for t in tokens])
    return TowerOutput(vector, Tokens(x, x.new_zeros(*x.shape[:2], 3), None, valid))


def _output_gradients(
    full_output: TowerOutput, batch_output: TowerOutput, start: int
) -> list[tuple[Tensor, Tensor]]:
    """Pair each tensor of a micro-batch with the gradient of the whole loss for it.

    Args:
        full_output: Output for all rows, with gradients.
        batch_output: Output for the micro-batch, with a graph.
        start: First row of the micro-batch among all rows.
    """
    rows = slice(start, start + len(batch_output.vector))
    pairs = [(batch_output.vector, full_output.vector.grad)]
    if batch_output.tokens is not None and full_output.tokens is not None:
        pairs.append((batch_output.tokens.x, full_output.tokens.x.grad))
    return [(x, grad[rows][:, : x.shape[1]]) for x, grad in pairs if grad is not None]


def _concat_batches(batches: Sequence[Batch]) -> Batch:
    """Concatenate batches; short rows are padded with zeros."""
    longest = {
        key: max(batch[key].shape[-1] for batch in batches)
        for key, values in batches[0].columns.items()
        if values.ndim in (2, 3)
    }
    padded = [
        batch.with_columns(
            {
                key: F.pad(batch[key], (0, size - batch[key].shape[-1]))
                for key, size in longest.items()
            }
        )
        for batch in batches
    ]
    return Batch.concat(padded)

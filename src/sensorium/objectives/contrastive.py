"""Pull pairs together, push the rest of the batch apart: InfoNCE (CLIP) or one sigmoid a pair (SigLIP).

    B batch   C captions of a batch   E width of the shared space   T tokens of the first column   S of the second

With several scales, half of the similarity comes from parts: each token's best match among the tokens of the
other side, averaged over real tokens (FILIP, Yao et al. 2021).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sensorium.models.towers import Tower, TowerOutput, Towers
from sensorium.nn.tokens import Batch, ColumnKey, Tokens, valid_mask

CONTRASTIVE_LOSSES = ("infonce", "siglip")


@dataclass(frozen=True)
class ContrastiveLoss:
    """Columns `a` and `b` of a batch belong together row by row.

    Rows of one group, and rows whose text is the same, are no negatives: they count as positives too. Rows in which
    one of the two is missing are left out. `b` may hold several texts a row, [B K T]: each is a positive of its row.
    """

    a: ColumnKey
    b: ColumnKey
    loss: str = "infonce"
    label_smoothing: float = 0.0

    def __call__(self, model: Towers, batch: Batch) -> dict[str, Tensor]:
        batch = drop_incomplete_rows(batch, self.a, self.b)
        a, b = (encode_unique(model[c], batch[c]) for c in (self.a, self.b))
        return {"model": self.compute_loss(model, a, b, positive_mask(batch, self.a, self.b))}

    def compute_loss(
        self, model: Towers, a: TowerOutput, b: TowerOutput, positive_mask: Bool[Tensor, "B C"]
    ) -> Float[Tensor, ""]:
        """The loss of aligned sides."""
        forth, back = similarity(a, b)
        scale = model.logit_scale.exp()
        if self.loss == "siglip":
            assert model.logit_bias is not None
            bias = model.logit_bias - math.log(
                max(1, len(positive_mask) - 1)
            )  # one pair in N is right: the odds to start from
            return (
                sigmoid_loss(scale * forth + bias, positive_mask)
                + sigmoid_loss(scale * back + bias, positive_mask.T)
            ) / 2
        return (
            infonce(scale * forth, positive_mask, self.label_smoothing)
            + infonce(scale * back, positive_mask.T, self.label_smoothing)
        ) / 2

    def accumulate(self, model: Towers, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """The loss of all `batches` as one, every pair of them a negative, with memory for one at a time.

        What the towers say first, without a graph; the loss on all of it; then each batch again, with its share of the
        gradient (GradCache, Gao et al. 2021). Gradients are added to the parameters. Chance (dropout) falls the same
        both times.
        """
        batches = [drop_incomplete_rows(batch, self.a, self.b) for batch in batches]
        chances, said = [], []
        with torch.no_grad():
            for batch in batches:
                chances.append(torch.get_rng_state())
                said.append([encode_unique(model[c], batch[c]) for c in (self.a, self.b)])
        after = torch.get_rng_state()
        a, b = sides = [_concat_as_leaf(side) for side in zip(*said, strict=True)]
        loss = self.compute_loss(
            model, a, b, positive_mask(_concat_batches(batches), self.a, self.b)
        )
        loss.backward()
        starts = [0, 0]
        for batch, chance in zip(batches, chances, strict=True):
            torch.set_rng_state(chance)
            again = [encode_unique(model[c], batch[c]) for c in (self.a, self.b)]
            pairs = [
                pair
                for of in zip(sides, again, starts, strict=True)
                for pair in _output_gradients(*of)
            ]
            starts = [at + len(now.vector) for at, now in zip(starts, again, strict=True)]
            torch.autograd.backward([now for now, _ in pairs], [share for _, share in pairs])
        torch.set_rng_state(after)
        return {"model": loss.detach()}


def encode_unique(tower: Tower, values: Tensor) -> TowerOutput:
    """What a tower says of each row, or of each text where a row has several; equal texts are read once."""
    if values.is_floating_point():
        return tower.encode(values)
    values = values.flatten(0, -2)
    distinct, where = torch.unique(values, dim=0, return_inverse=True)
    if len(distinct) == len(values):
        return tower.encode(values)
    said = tower.encode(distinct)
    if said.tokens is None:
        return TowerOutput(said.vector[where])
    t = said.tokens
    return TowerOutput(
        said.vector[where], Tokens(t.x[where], t.pos[where], None, valid_mask(t)[where])
    )


def _concat_as_leaf(outputs: Sequence[TowerOutput]) -> TowerOutput:
    """What one tower said of several batches, as one whose tensors collect gradients."""
    vector = torch.cat([p.vector for p in outputs]).requires_grad_()
    tokens = [p.tokens for p in outputs if p.tokens is not None]
    if not tokens:
        return TowerOutput(vector)
    longest = max(t.x.shape[1] for t in tokens)
    x = torch.cat([F.pad(t.x, (0, 0, 0, longest - t.x.shape[1])) for t in tokens]).requires_grad_()
    valid = torch.cat([F.pad(valid_mask(t), (0, longest - t.x.shape[1])) for t in tokens])
    return TowerOutput(vector, Tokens(x, x.new_zeros(*x.shape[:2], 3), None, valid))


def _output_gradients(
    full_output: TowerOutput, batch_output: TowerOutput, start: int
) -> list[tuple[Tensor, Tensor]]:
    """Each tensor of `now`, whose rows begin at `at`, with the gradient that the whole loss has for it."""
    rows = slice(start, start + len(batch_output.vector))
    pairs = [(batch_output.vector, full_output.vector.grad)]
    if batch_output.tokens is not None and full_output.tokens is not None:
        pairs.append((batch_output.tokens.x, full_output.tokens.x.grad))
    return [(x, grad[rows][:, : x.shape[1]]) for x, grad in pairs if grad is not None]


def drop_incomplete_rows(batch: Batch, *columns: ColumnKey) -> Batch:
    """The rows of a batch in which none of `columns` is missing."""
    known = [batch.present[c] for c in columns if c in batch.present]
    if not known or torch.stack(known).all():
        return batch
    return batch.take(torch.stack(known).all(0))


def _concat_batches(batches: Sequence[Batch]) -> Batch:
    """Several batches as one, short rows padded with zeros."""
    longest = {
        k: max(b[k].shape[-1] for b in batches)
        for k, x in batches[0].columns.items()
        if x.ndim in (2, 3)
    }
    return Batch.concat(
        [
            b.with_columns(
                {k: F.pad(b[k], (0, size - b[k].shape[-1])) for k, size in longest.items()}
            )
            for b in batches
        ]
    )


def positive_mask(batch: Batch, a: ColumnKey, b: ColumnKey) -> Bool[Tensor, "B C"]:
    """Which row of `a` goes with which text (or row) of `b`: those of one group, and those that share ids in a column."""
    first, second = batch[a], batch[b]
    same = torch.eye(len(first), dtype=torch.bool, device=first.device)
    if batch.group is not None:
        same = same | (batch.group[:, None] == batch.group)
    if first.ndim == 2 and not first.is_floating_point():
        same = same | (first[:, None] == first).all(-1)
    if second.ndim not in (2, 3) or second.is_floating_point():
        return same
    number = torch.unique(second.flatten(0, -2), dim=0, return_inverse=True)[1].view(
        len(second), -1
    )
    said = (number[:, :, None] == number.flatten()).any(1)
    return said | same.repeat_interleave(number.shape[1], 1)


def similarity(a: TowerOutput, b: TowerOutput) -> tuple[Float[Tensor, "B C"], Float[Tensor, "C B"]]:
    """Cosines of all a with all b, and of all b with all a (transposes of each other unless parts are compared)."""
    forth = a.vector @ b.vector.T
    if a.tokens is None or b.tokens is None:
        return forth, forth.T
    pairs = torch.einsum("ite,jse->ijts", a.tokens.x, b.tokens.x)
    real_a, real_b = valid_mask(a.tokens), valid_mask(b.tokens)
    best_b = pairs.masked_fill(~real_b[None, :, None, :], -1).amax(3) * real_a[:, None]
    best_a = pairs.masked_fill(~real_a[:, None, :, None], -1).amax(2) * real_b
    forth_parts = best_b.sum(2) / real_a.sum(1).clamp(min=1)[:, None]
    back_parts = (best_a.sum(2) / real_b.sum(1).clamp(min=1)).T
    return (forth + forth_parts) / 2, (forth.T + back_parts) / 2


def infonce(
    logits: Float[Tensor, "B C"], positive_mask: Bool[Tensor, "B C"], label_smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Cross-entropy of each row against its positives, all of them equally likely."""
    target = positive_mask / positive_mask.sum(1, keepdim=True)
    return F.cross_entropy(logits, target.to(logits.dtype), label_smoothing=label_smoothing)


def sigmoid_loss(
    logits: Float[Tensor, "B C"], positive_mask: Bool[Tensor, "B C"]
) -> Float[Tensor, ""]:
    """Each pair a yes or no of its own; the sum over pairs divided by B, not by B² (Zhai et al. 2023)."""
    return -F.logsigmoid(torch.where(positive_mask, logits, -logits)).sum() / len(logits)

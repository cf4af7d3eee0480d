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

from sensorium.models import Aligned, Tower, Towers
from sensorium.tokens import Batch, ColumnKey, Tokens, present

LOSSES = ("infonce", "siglip")


@dataclass(frozen=True)
class Contrastive:
    """Columns `a` and `b` of a batch belong together row by row.

    Rows of one group, and rows whose text is the same, are no negatives: they count as positives too. Rows in which
    one of the two is missing are left out. `b` may hold several texts a row, [B K T]: each is a positive of its row.
    """

    a: ColumnKey
    b: ColumnKey
    loss: str = "infonce"
    smoothing: float = 0.0

    def __call__(self, model: Towers, batch: Batch) -> dict[str, Tensor]:
        batch = complete(batch, self.a, self.b)
        a, b = (aligned(model[c], batch[c]) for c in (self.a, self.b))
        return {"model": self.of(model, a, b, positives(batch, self.a, self.b))}

    def of(self, model: Towers, a: Aligned, b: Aligned, same: Bool[Tensor, "B C"]) -> Float[Tensor, ""]:
        """The loss of aligned sides."""
        forth, back = similarity(a, b)
        scale = model.log_scale.exp()
        if self.loss == "siglip":
            assert model.bias is not None
            bias = model.bias - math.log(max(1, len(same) - 1))         # one pair in N is right: the odds to start from
            return (sigmoid_loss(scale * forth + bias, same) + sigmoid_loss(scale * back + bias, same.T)) / 2
        return (infonce(scale * forth, same, self.smoothing) + infonce(scale * back, same.T, self.smoothing)) / 2

    def accumulate(self, model: Towers, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """The loss of all `batches` as one, every pair of them a negative, with memory for one at a time.

        What the towers say first, without a graph; the loss on all of it; then each batch again, with its share of the
        gradient (GradCache, Gao et al. 2021). Gradients are added to the parameters. Chance (dropout) falls the same
        both times.
        """
        batches = [complete(batch, self.a, self.b) for batch in batches]
        chances, said = [], []
        with torch.no_grad():
            for batch in batches:
                chances.append(torch.get_rng_state())
                said.append([aligned(model[c], batch[c]) for c in (self.a, self.b)])
        after = torch.get_rng_state()
        a, b = sides = [_leaf(side) for side in zip(*said, strict=True)]
        loss = self.of(model, a, b, positives(_joined(batches), self.a, self.b))
        loss.backward()
        starts = [0, 0]
        for batch, chance in zip(batches, chances, strict=True):
            torch.set_rng_state(chance)
            again = [aligned(model[c], batch[c]) for c in (self.a, self.b)]
            pairs = [pair for of in zip(sides, again, starts, strict=True) for pair in _shares(*of)]
            starts = [at + len(now.vector) for at, now in zip(starts, again, strict=True)]
            torch.autograd.backward([now for now, _ in pairs], [share for _, share in pairs])
        torch.set_rng_state(after)
        return {"model": loss.detach()}


def aligned(tower: Tower, values: Tensor) -> Aligned:
    """What a tower says of each row, or of each text where a row has several; equal texts are read once."""
    if values.is_floating_point():
        return tower.aligned(values)
    values = values.flatten(0, -2)
    distinct, where = torch.unique(values, dim=0, return_inverse=True)
    if len(distinct) == len(values):
        return tower.aligned(values)
    said = tower.aligned(distinct)
    if said.tokens is None:
        return Aligned(said.vector[where])
    t = said.tokens
    return Aligned(said.vector[where], Tokens(t.x[where], t.pos[where], None, present(t)[where]))


def _leaf(parts: Sequence[Aligned]) -> Aligned:
    """What one tower said of several batches, as one whose tensors collect gradients."""
    vector = torch.cat([p.vector for p in parts]).requires_grad_()
    tokens = [p.tokens for p in parts if p.tokens is not None]
    if not tokens:
        return Aligned(vector)
    longest = max(t.x.shape[1] for t in tokens)
    x = torch.cat([F.pad(t.x, (0, 0, 0, longest - t.x.shape[1])) for t in tokens]).requires_grad_()
    valid = torch.cat([F.pad(present(t), (0, longest - t.x.shape[1])) for t in tokens])
    return Aligned(vector, Tokens(x, x.new_zeros(*x.shape[:2], 3), None, valid))


def _shares(side: Aligned, now: Aligned, at: int) -> list[tuple[Tensor, Tensor]]:
    """Each tensor of `now`, whose rows begin at `at`, with the gradient that the whole loss has for it."""
    rows = slice(at, at + len(now.vector))
    pairs = [(now.vector, side.vector.grad)]
    if now.tokens is not None and side.tokens is not None:
        pairs.append((now.tokens.x, side.tokens.x.grad))
    return [(x, grad[rows][:, :x.shape[1]]) for x, grad in pairs if grad is not None]


def complete(batch: Batch, *columns: ColumnKey) -> Batch:
    """The rows of a batch in which none of `columns` is missing."""
    known = [batch.present[c] for c in columns if c in batch.present]
    if not known or torch.stack(known).all():
        return batch
    return batch.take(torch.stack(known).all(0))


def _joined(batches: Sequence[Batch]) -> Batch:
    """Several batches as one, short rows padded with zeros."""
    longest = {k: max(b[k].shape[-1] for b in batches) for k, x in batches[0].columns.items() if x.ndim in (2, 3)}
    return Batch.joined([b.changed({k: F.pad(b[k], (0, size - b[k].shape[-1])) for k, size in longest.items()})
                         for b in batches])


def positives(batch: Batch, a: ColumnKey, b: ColumnKey) -> Bool[Tensor, "B C"]:
    """Which row of `a` goes with which text (or row) of `b`: those of one group, and those that share ids in a column.
    """
    first, second = batch[a], batch[b]
    same = torch.eye(len(first), dtype=torch.bool, device=first.device)
    if batch.group is not None:
        same = same | (batch.group[:, None] == batch.group)
    if first.ndim == 2 and not first.is_floating_point():
        same = same | (first[:, None] == first).all(-1)
    if second.ndim not in (2, 3) or second.is_floating_point():
        return same
    number = torch.unique(second.flatten(0, -2), dim=0, return_inverse=True)[1].view(len(second), -1)
    said = (number[:, :, None] == number.flatten()).any(1)
    return said | same.repeat_interleave(number.shape[1], 1)


def similarity(a: Aligned, b: Aligned) -> tuple[Float[Tensor, "B C"], Float[Tensor, "C B"]]:
    """Cosines of all a with all b, and of all b with all a (transposes of each other unless parts are compared)."""
    forth = a.vector @ b.vector.T
    if a.tokens is None or b.tokens is None:
        return forth, forth.T
    pairs = torch.einsum("ite,jse->ijts", a.tokens.x, b.tokens.x)
    real_a, real_b = present(a.tokens), present(b.tokens)
    best_b = pairs.masked_fill(~real_b[None, :, None, :], -1).amax(3) * real_a[:, None]
    best_a = pairs.masked_fill(~real_a[:, None, :, None], -1).amax(2) * real_b
    forth_parts = best_b.sum(2) / real_a.sum(1).clamp(min=1)[:, None]
    back_parts = (best_a.sum(2) / real_b.sum(1).clamp(min=1)).T
    return (forth + forth_parts) / 2, (forth.T + back_parts) / 2


def infonce(logits: Float[Tensor, "B C"], same: Bool[Tensor, "B C"], smoothing: float = 0.0) -> Float[Tensor, ""]:
    """Cross-entropy of each row against its positives, all of them equally likely."""
    target = same / same.sum(1, keepdim=True)
    return F.cross_entropy(logits, target.to(logits.dtype), label_smoothing=smoothing)


def sigmoid_loss(logits: Float[Tensor, "B C"], same: Bool[Tensor, "B C"]) -> Float[Tensor, ""]:
    """Each pair a yes or no of its own; the sum over pairs divided by B, not by B² (Zhai et al. 2023)."""
    return -F.logsigmoid(torch.where(same, logits, -logits)).sum() / len(logits)

"""Contrastive losses: identities, duplicates, missing rows and gradient accumulation."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sensorium.modalities.image import PatchEmbedding
from sensorium.modalities.text import Text, TextEmbedding
from sensorium.models.towers import Encoder, Tower, TowerOutput, Towers
from sensorium.nn.projection import PROJECTIONS, MLPProjection
from sensorium.nn.tokens import Batch, ColumnKey, Tokens, l2_normalize, sequence_positions
from sensorium.nn.transformer import build_transformer
from sensorium.objectives.contrastive import (
    ContrastiveLoss,
    drop_incomplete_rows,
    encode_unique,
    infonce,
    positive_mask,
    sigmoid_loss,
    similarity,
)

TEXT = Text(length=12, vocab_size=300)


def build_towers(projection: str = "linear", loss: str = "infonce", dropout: float = 0.0) -> Towers:
    torch.manual_seed(0)
    image_encoder = Encoder(
        PatchEmbedding(32, 16, 4), build_transformer(32, 2, 2, input_norm=True, dropout=dropout)
    )
    text_encoder = Encoder(TextEmbedding(32, TEXT), build_transformer(32, 2, 2, dropout=dropout))
    towers: dict[ColumnKey, Tower] = {
        name: Tower(encoder, PROJECTIONS[projection](32, 16), 16)
        for name, encoder in (("image", image_encoder), ("text", text_encoder))
    }
    return Towers(towers, use_logit_bias=loss == "siglip")


def batch(n: int = 8) -> Batch:
    rng = torch.Generator().manual_seed(0)
    return Batch(
        {"image": torch.randn(n, 3, 16, 16, generator=rng), "text": TEXT.fake(n, rng)},
        row=torch.arange(n),
        group=torch.arange(n),
    )


def gradients(model: Towers) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_infonce_without_duplicates_equals_cross_entropy() -> None:
    logits = torch.randn(6, 6)
    identity = torch.eye(6, dtype=torch.bool)
    torch.testing.assert_close(infonce(logits, identity), F.cross_entropy(logits, torch.arange(6)))


def test_sigmoid_loss_is_divided_by_rows() -> None:
    identity = torch.eye(5, dtype=torch.bool)
    assert sigmoid_loss(torch.zeros(5, 5), identity).item() == pytest.approx(5 * math.log(2))


def test_sigmoid_loss_in_chunks_equals_full_loss() -> None:
    logits, identity = torch.randn(6, 6), torch.eye(6, dtype=torch.bool)
    halves = [sigmoid_loss(logits[i : i + 3], identity[i : i + 3]) for i in (0, 3)]
    torch.testing.assert_close(sum(halves) / 2, sigmoid_loss(logits, identity))


def test_sigmoid_bias_starts_at_odds_of_a_match() -> None:
    """With all similarities 0, a match has probability 1/N; the loss is its entropy."""
    model, n = build_towers(loss="siglip"), 8
    zeros = TowerOutput(torch.zeros(n, 16))
    loss = ContrastiveLoss("image", "text", "siglip").compute_loss(
        model, zeros, zeros, torch.eye(n, dtype=torch.bool)
    )
    p = 1 / n
    assert loss.item() == pytest.approx(
        n * -(p * math.log(p) + (1 - p) * math.log(1 - p)), rel=1e-4
    )


def test_loss_is_invariant_to_order_of_rows() -> None:
    b = batch()
    reversed_batch = b.take(torch.arange(len(b)).flip(0))
    for loss in ("infonce", "siglip"):
        model = build_towers(loss=loss)
        objective = ContrastiveLoss("image", "text", loss)
        torch.testing.assert_close(
            objective(model, b)["model"], objective(model, reversed_batch)["model"]
        )


def test_duplicates_are_positives() -> None:
    b = batch(4)
    assert torch.equal(positive_mask(b, "image", "text"), torch.eye(4, dtype=torch.bool))
    b["text"][2] = b["text"][0]
    assert positive_mask(b, "image", "text")[0].tolist() == [True, False, True, False]
    b = replace(b, group=torch.tensor([0, 1, 2, 1]))
    assert positive_mask(b, "image", "text")[1].tolist() == [False, True, False, True]


def test_duplicated_pair_has_equal_gradients() -> None:
    """Two equal rows share their positives, so that neither is a negative of the other."""
    same = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    logits = torch.tensor([[5.0, 5.0, 0.0], [5.0, 5.0, 0.0], [0.0, 0.0, 5.0]], requires_grad=True)
    infonce(logits, same).backward()
    grad = logits.grad
    assert grad is not None
    torch.testing.assert_close(grad[0, 0], grad[0, 1])


@pytest.mark.parametrize("projection", ["linear", "multiscale"])
def test_encode_unique_equals_encode(projection: str) -> None:
    model, b = build_towers(projection), batch(4)
    b["text"][2] = b["text"][0]
    twice, once = model["text"].encode(b["text"]), encode_unique(model["text"], b["text"])
    torch.testing.assert_close(once.vector, twice.vector)
    assert torch.equal(once.vector[0], once.vector[2])
    if once.tokens is not None and twice.tokens is not None:
        torch.testing.assert_close(
            once.tokens.x[once.tokens.valid], twice.tokens.x[twice.tokens.valid]
        )


def test_all_texts_of_a_row_are_positives() -> None:
    b = batch(3)
    # The second text of each row is the first of another row.
    b.columns["text"] = torch.stack([b["text"], b["text"].roll(1, 0)], 1)
    b["text"][1, 1] = b["text"][1, 0]
    assert positive_mask(b, "image", "text").int().tolist() == [
        [1, 1, 0, 0, 1, 0],
        [0, 0, 1, 1, 0, 1],
        [0, 1, 1, 1, 1, 1],
    ]


@pytest.mark.parametrize("projection", ["linear", "multiscale"])
def test_repeated_text_leaves_gradient_unchanged(projection: str) -> None:
    """Each of two equal texts is half as likely: the loss rises by log(2) / 2."""
    model, once, objective = build_towers(projection), batch(), ContrastiveLoss("image", "text")
    twice = once.with_columns({"text": once["text"][:, None].repeat(1, 2, 1)})
    single = objective(model, once)["model"]
    single.backward()
    grads = gradients(model)
    model.zero_grad()
    doubled = objective(model, twice)["model"]
    doubled.backward()
    torch.testing.assert_close(doubled, single + math.log(2) / 2)
    for name, grad in gradients(model).items():
        torch.testing.assert_close(grads[name], grad, atol=1e-5, rtol=1e-4, msg=name)


def test_incomplete_rows_are_dropped() -> None:
    model, b = build_towers(), batch()
    incomplete = b.with_columns(present={"text": torch.tensor([True] * 5 + [False] * 3)})
    complete = b.take(slice(5))
    objective = ContrastiveLoss("image", "text")
    torch.testing.assert_close(
        objective(model, incomplete)["model"], objective(model, complete)["model"]
    )
    assert len(drop_incomplete_rows(incomplete, "image", "text")) == 5


@pytest.mark.parametrize("projection", ["linear", "multiscale"])
@pytest.mark.parametrize("loss", ["infonce", "siglip"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("captions", [1, 2])
def test_accumulated_gradients_equal_those_of_full_batch(
    projection: str, loss: str, dropout: float, captions: int
) -> None:
    model, b = build_towers(projection, loss, dropout), batch()
    objective = ContrastiveLoss("image", "text", loss)
    if captions > 1:
        b.columns["text"] = torch.stack([b["text"], b["text"].roll(1, 0)], 1)
    parts = [b.take(slice(3)), b.take(slice(3, None))]
    torch.manual_seed(1)
    split = objective.accumulate(model, parts)["model"]
    split_grads = gradients(model)
    if dropout:  # dropout differs for a full batch: compare with a repetition
        model.zero_grad()
        torch.manual_seed(1)
        assert torch.equal(objective.accumulate(model, parts)["model"], split)
        assert all(torch.equal(g, split_grads[n]) for n, g in gradients(model).items())
        return
    model.zero_grad()
    full = objective(model, b)["model"]
    full.backward()
    torch.testing.assert_close(split, full.detach())
    for name, grad in gradients(model).items():
        torch.testing.assert_close(split_grads[name], grad, atol=1e-5, rtol=1e-4, msg=name)


def test_token_similarity_averages_best_matches() -> None:
    """Two images of two tokens and two texts of two tokens (one padded), by hand."""
    basis = torch.eye(4)
    image = torch.stack([basis[[0, 1]], basis[[2, 3]]])
    text = torch.stack([basis[[0, 0]], basis[[2, 3]]])
    valid = torch.tensor([[True, False], [True, True]])
    zero = torch.zeros(2, 4)
    a = TowerOutput(zero, Tokens(image, sequence_positions(image)))
    b = TowerOutput(zero, Tokens(text, sequence_positions(text), None, valid))
    a_to_b, b_to_a = similarity(a, b)
    torch.testing.assert_close(a_to_b * 2, torch.tensor([[0.5, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(b_to_a * 2, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))


def test_logit_scale_is_clamped() -> None:
    model = build_towers()
    for value, clamped in ((9.0, math.log(100)), (-1.0, 0.0)):
        torch.nn.init.constant_(model.logit_scale, value)
        model.clamp_logit_scale()
        assert model.logit_scale.item() == pytest.approx(clamped)


def test_mlp_projection_starts_as_linear_projection() -> None:
    torch.manual_seed(0)
    projection, x = MLPProjection(8, 4), torch.randn(3, 8)
    torch.testing.assert_close(projection(x), projection.linear(x))


def test_tower_outputs_have_unit_length() -> None:
    out = build_towers()["text"](TEXT.fake(5, torch.Generator().manual_seed(1)))
    torch.testing.assert_close(out.norm(dim=1), torch.ones(5))
    assert l2_normalize(torch.zeros(1, 3)).isfinite().all()

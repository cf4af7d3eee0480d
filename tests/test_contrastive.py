"""The contrastive losses: identities, duplicates, missing rows, accumulation that keeps its negatives."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sensorium.modalities.image import PatchEmbedding
from sensorium.modalities.text import Text, TextEmbedding
from sensorium.models.towers import Encoder, Tower, TowerOutput, Towers
from sensorium.nn.projection import PROJECTIONS
from sensorium.nn.tokens import Batch, Tokens, l2_normalize, sequence_positions
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


def towers(align: str = "linear", loss: str = "infonce", dropout: float = 0.0) -> Towers:
    torch.manual_seed(0)
    eye = Encoder(
        PatchEmbedding(32, 16, 4), build_transformer(32, 2, 2, input_norm=True, dropout=dropout)
    )
    voice = Encoder(TextEmbedding(32, TEXT), build_transformer(32, 2, 2, dropout=dropout))
    made = {
        name: Tower(e, PROJECTIONS[align](32, 16), 16)
        for name, e in (("image", eye), ("text", voice))
    }
    return Towers(made, use_logit_bias=loss == "siglip")


def batch(n: int = 8) -> Batch:
    rng = torch.Generator().manual_seed(0)
    return Batch(
        {"image": torch.randn(n, 3, 16, 16, generator=rng), "text": TEXT.fake(n, rng)},
        row=torch.arange(n),
        group=torch.arange(n),
    )


def gradients(model: Towers) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_infonce_is_cross_entropy_where_nothing_repeats() -> None:
    logits = torch.randn(6, 6)
    eye = torch.eye(6, dtype=torch.bool)
    torch.testing.assert_close(infonce(logits, eye), F.cross_entropy(logits, torch.arange(6)))


def test_sigmoid_divides_by_rows_not_pairs() -> None:
    eye = torch.eye(5, dtype=torch.bool)
    assert sigmoid_loss(torch.zeros(5, 5), eye).item() == pytest.approx(5 * math.log(2))


def test_sigmoid_in_chunks_is_the_whole() -> None:
    logits, eye = torch.randn(6, 6), torch.eye(6, dtype=torch.bool)
    halves = [sigmoid_loss(logits[i : i + 3], eye[i : i + 3]) for i in (0, 3)]
    torch.testing.assert_close(sum(halves) / 2, sigmoid_loss(logits, eye))


def test_the_sigmoid_bias_starts_at_the_odds() -> None:
    """With all similarities 0 the chance of a match is 1 in N: the loss is the entropy of that."""
    model, n = towers(loss="siglip"), 8
    nothing = TowerOutput(torch.zeros(n, 16))
    loss = ContrastiveLoss("image", "text", "siglip").compute_loss(
        model, nothing, nothing, torch.eye(n, dtype=torch.bool)
    )
    p = 1 / n
    assert loss.item() == pytest.approx(
        n * -(p * math.log(p) + (1 - p) * math.log(1 - p)), rel=1e-4
    )


def test_order_of_rows_is_irrelevant() -> None:
    model, b = towers(), batch()
    turned = b.take(torch.arange(len(b)).flip(0))
    for loss in ("infonce", "siglip"):
        model = towers(loss=loss)
        objective = ContrastiveLoss("image", "text", loss)
        torch.testing.assert_close(objective(model, b)["model"], objective(model, turned)["model"])


def test_duplicates_are_no_negatives() -> None:
    b = batch(4)
    assert torch.equal(positive_mask(b, "image", "text"), torch.eye(4, dtype=torch.bool))
    b["text"][2] = b["text"][0]
    assert positive_mask(b, "image", "text")[0].tolist() == [True, False, True, False]
    b = replace(b, group=torch.tensor([0, 1, 2, 1]))
    assert positive_mask(b, "image", "text")[1].tolist() == [False, True, False, True]


def test_a_duplicated_pair_changes_nothing_to_learn() -> None:
    """Two equal rows share their positives, so neither pushes the other away."""
    same = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    logits = torch.tensor([[5.0, 5.0, 0.0], [5.0, 5.0, 0.0], [0.0, 0.0, 5.0]], requires_grad=True)
    infonce(logits, same).backward()
    grad = logits.grad
    torch.testing.assert_close(grad[0, 0], grad[0, 1])


@pytest.mark.parametrize("align", ["linear", "multiscale"])
def test_a_repeated_text_is_read_once_and_said_twice(align: str) -> None:
    model, b = towers(align), batch(4)
    b["text"][2] = b["text"][0]
    twice, once = model["text"].encode(b["text"]), encode_unique(model["text"], b["text"])
    torch.testing.assert_close(once.vector, twice.vector)
    assert torch.equal(once.vector[0], once.vector[2])
    if once.tokens is not None and twice.tokens is not None:
        torch.testing.assert_close(
            once.tokens.x[once.tokens.valid], twice.tokens.x[twice.tokens.valid]
        )


def test_several_texts_of_a_row_are_all_right() -> None:
    b = batch(3)
    b.columns["text"] = torch.stack(
        [b["text"], b["text"].roll(1, 0)], 1
    )  # the second of each is another's first
    b["text"][1, 1] = b["text"][1, 0]
    assert positive_mask(b, "image", "text").int().tolist() == [
        [1, 1, 0, 0, 1, 0],
        [0, 0, 1, 1, 0, 1],
        [0, 1, 1, 1, 1, 1],
    ]


@pytest.mark.parametrize("align", ["linear", "multiscale"])
def test_saying_it_twice_teaches_nothing_new(align: str) -> None:
    """Each of two equal texts is half as likely, so the loss is log(2) / 2 higher, and its gradient the same."""
    model, once, objective = towers(align), batch(), ContrastiveLoss("image", "text")
    twice = once.with_columns({"text": once["text"][:, None].repeat(1, 2, 1)})
    plain = objective(model, once)["model"]
    plain.backward()
    grads = gradients(model)
    model.zero_grad()
    doubled = objective(model, twice)["model"]
    doubled.backward()
    torch.testing.assert_close(doubled, plain + math.log(2) / 2)
    for name, grad in gradients(model).items():
        torch.testing.assert_close(grads[name], grad, atol=1e-5, rtol=1e-4, msg=name)


def test_a_missing_partner_leaves_the_row_out() -> None:
    model, b = towers(), batch()
    gone, kept = (
        b.with_columns(present={"text": torch.tensor([True] * 5 + [False] * 3)}),
        b.take(slice(5)),
    )
    objective = ContrastiveLoss("image", "text")
    torch.testing.assert_close(objective(model, gone)["model"], objective(model, kept)["model"])
    assert len(drop_incomplete_rows(gone, "image", "text")) == 5


@pytest.mark.parametrize("align", ["linear", "multiscale"])
@pytest.mark.parametrize("loss", ["infonce", "siglip"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("captions", [1, 2])
def test_accumulation_keeps_its_negatives(
    align: str, loss: str, dropout: float, captions: int
) -> None:
    model, b, objective = (
        towers(align, loss, dropout),
        batch(),
        ContrastiveLoss("image", "text", loss),
    )
    if captions > 1:
        b.columns["text"] = torch.stack([b["text"], b["text"].roll(1, 0)], 1)
    parts = [b.take(slice(3)), b.take(slice(3, None))]
    torch.manual_seed(1)
    split = objective.accumulate(model, parts)["model"]
    split_grads = gradients(model)
    if dropout:  # chance falls differently for a whole batch: compare with itself
        model.zero_grad()
        torch.manual_seed(1)
        assert torch.equal(objective.accumulate(model, parts)["model"], split)
        assert all(torch.equal(g, split_grads[n]) for n, g in gradients(model).items())
        return
    model.zero_grad()
    whole = objective(model, b)["model"]
    whole.backward()
    torch.testing.assert_close(split, whole.detach())
    for name, grad in gradients(model).items():
        torch.testing.assert_close(split_grads[name], grad, atol=1e-5, rtol=1e-4, msg=name)


def test_parts_find_their_best_match() -> None:
    """Two pictures of two parts, two texts of two words (one padded): by hand."""
    basis = torch.eye(4)
    picture = torch.stack([basis[[0, 1]], basis[[2, 3]]])
    words = torch.stack([basis[[0, 0]], basis[[2, 3]]])
    valid = torch.tensor([[True, False], [True, True]])
    zero = torch.zeros(2, 4)
    a = TowerOutput(zero, Tokens(picture, sequence_positions(picture)))
    b = TowerOutput(zero, Tokens(words, sequence_positions(words), None, valid))
    forth, back = similarity(a, b)
    torch.testing.assert_close(forth * 2, torch.tensor([[0.5, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(back * 2, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))


def test_temperature_stays_in_bounds() -> None:
    model = towers()
    for value, kept in ((9.0, math.log(100)), (-1.0, 0.0)):
        torch.nn.init.constant_(model.logit_scale, value)
        model.clamp_logit_scale()
        assert model.logit_scale.item() == pytest.approx(kept)


def test_nonlinear_starts_as_linear() -> None:
    torch.manual_seed(0)
    align, x = PROJECTIONS["nonlinear"](8, 4), torch.randn(3, 8)
    torch.testing.assert_close(align(x), align.straight(x))


def test_vectors_have_length_one() -> None:
    out = towers()["text"](TEXT.fake(5, torch.Generator().manual_seed(1)))
    torch.testing.assert_close(out.norm(dim=1), torch.ones(5))
    assert l2_normalize(torch.zeros(1, 3)).isfinite().all()

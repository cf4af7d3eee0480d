"""The diffusion prior: what it sees, and what guidance drops."""

import pytest
import torch
from torch import nn

from sensorium.models.prior import DiffusionPrior, PriorCondition
from sensorium.nn.tokens import Tokens, sequence_positions


@pytest.fixture
def prior() -> DiffusionPrior:
    torch.manual_seed(0)
    model = DiffusionPrior(embed_dim=6, text_dim=5, text_length=7, dim=16, depth=2)
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    return model


def condition(lengths: list[int], longest: int = 0) -> PriorCondition:
    length = max(*lengths, longest)
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(len(lengths), length, 5, generator=rng)
    valid = torch.arange(length) < torch.tensor(lengths)[:, None]
    embedding = torch.randn(len(lengths), 6, generator=rng)
    keep = torch.ones(len(lengths), dtype=torch.bool)
    return PriorCondition(Tokens(x, sequence_positions(x), valid=valid), embedding, keep)


def test_both_branches_of_guidance_see_the_noisy_embedding(prior: DiffusionPrior) -> None:
    x, time, text = torch.randn(2, 6), torch.tensor([100.0, 900.0]), condition([3, 5])
    for given in (text, text.without_text()):
        base = prior(x, time, given)
        assert (prior(x + 1, time, given) - base).abs().max() > 1e-3
        assert (prior(x, time + 50, given) - base).abs().max() > 1e-4


def test_a_dropped_text_is_not_seen(prior: DiffusionPrior) -> None:
    x, time, text = torch.randn(2, 6), torch.tensor([100.0, 900.0]), condition([3, 5])
    other = PriorCondition(
        Tokens(text.tokens.x + 1, text.tokens.pos, valid=text.tokens.valid),
        text.embedding + 1,
        text.keep,
    )
    dropped = prior(x, time, text.without_text())
    torch.testing.assert_close(prior(x, time, other.without_text()), dropped)
    assert (prior(x, time, other) - prior(x, time, text)).abs().max() > 1e-3
    assert (prior(x, time, text) - dropped).abs().max() > 1e-3


def test_padding_and_the_inputs_stay_as_they_are(prior: DiffusionPrior) -> None:
    x, time, short = torch.randn(1, 6), torch.tensor([300.0]), condition([3])
    padded_x = torch.cat([short.tokens.x, torch.full((1, 2, 5), 1e3)], 1)
    padded = PriorCondition(
        Tokens(padded_x, sequence_positions(padded_x), valid=torch.arange(5)[None] < 3),
        short.embedding,
        short.keep,
    )
    before = [t.clone() for t in (x, short.tokens.x, short.embedding)]
    output = prior(x, time, short)
    torch.testing.assert_close(prior(x, time, padded), output, atol=1e-5, rtol=0)
    for t, copy in zip((x, short.tokens.x, short.embedding), before, strict=True):
        assert torch.equal(t, copy)

"""Denoisers: identities at initialization, conditions computed once, masks and batches."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sensorium.nn.denoising import Channels, Conditioning, ContextAttention, Denoiser
from sensorium.nn.dit import DiT, DiTBlock, grid_embedding
from sensorium.nn.time_embedding import TimeEmbedding, sinusoidal_embedding
from sensorium.nn.tokens import Tokens, sequence_positions
from sensorium.nn.unet import AttentionBlock, ResidualBlock, UNet

CHANNELS = Channels(context=12, vector=5)
DENOISERS: dict[str, Callable[[], nn.Module]] = {
    "dit": lambda: DiT(8, CHANNELS, 32, 2, 2),
    "unet": lambda: UNet(CHANNELS, (16, 32), (1, 2), attention_levels=(1,)),
}


def _denoiser(name: str, *, trained: bool) -> Denoiser:
    torch.manual_seed(0)
    model = DENOISERS[name]()
    if trained:
        for p in model.parameters():
            nn.init.normal_(p, std=0.1)
    assert isinstance(model, Denoiser)
    return model


def _context(lengths: list[int], longest: int = 0) -> Tokens:
    length = max(*lengths, longest)
    x = torch.randn(len(lengths), length, 12, generator=torch.Generator().manual_seed(1))
    valid = torch.arange(length) < torch.tensor(lengths)[:, None]
    return Tokens(x, sequence_positions(x), valid=valid)


@pytest.mark.parametrize("name", DENOISERS)
def test_a_new_denoiser_returns_zero(name: str) -> None:
    model = _denoiser(name, trained=False)
    condition = model.prepare(_context([2, 4]), torch.randn(2, 5))
    output = model(torch.randn(2, 3, 8, 8), torch.tensor([10.0, 900.0]), condition)
    assert torch.equal(output, torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("name", DENOISERS)
def test_time_vector_and_context_matter_in_their_own_row_only(name: str) -> None:
    model = _denoiser(name, trained=True)
    x, vector, context = torch.randn(2, 3, 8, 8), torch.randn(2, 5), _context([2, 4])
    time = torch.tensor([10.0, 900.0])
    base = model(x, time, model.prepare(context, vector))
    other_vector = vector.clone()
    other_vector[1] += 1
    other_context = Tokens(context.x.clone(), context.pos, valid=context.valid)
    other_context.x[1, 3] += 1
    changed = [
        model(x, torch.tensor([10.0, 500.0]), model.prepare(context, vector)),
        model(x, time, model.prepare(context, other_vector)),
        model(x, time, model.prepare(other_context, vector)),
    ]
    for output in changed:
        torch.testing.assert_close(output[0], base[0], atol=1e-6, rtol=0)
        assert (output[1] - base[1]).abs().max() > 1e-4


@pytest.mark.parametrize("name", DENOISERS)
def test_padding_of_the_context_changes_nothing(name: str) -> None:
    model = _denoiser(name, trained=True)
    x, vector, time = torch.randn(1, 3, 8, 8), torch.randn(1, 5), torch.tensor([300.0])
    short = _context([3])
    long_x = torch.cat([short.x, torch.full((1, 4, 12), 1e3)], 1)
    padded = Tokens(long_x, sequence_positions(long_x), valid=torch.arange(7)[None] < 3)
    torch.testing.assert_close(
        model(x, time, model.prepare(padded, vector)),
        model(x, time, model.prepare(short, vector)),
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize("name", DENOISERS)
def test_two_conditions_in_one_batch_equal_two_batches(name: str) -> None:
    model = _denoiser(name, trained=True)
    x, time = torch.randn(2, 3, 8, 8), torch.tensor([300.0, 400.0])
    given = model.prepare(_context([2, 4]), torch.randn(2, 5))
    null = model.prepare(_context([1, 1]), torch.zeros(2, 5))
    both = model(torch.cat([x, x]), torch.cat([time, time]), given.concat(null))
    apart = torch.cat([model(x, time, given), model(x, time, null)])
    torch.testing.assert_close(both, apart, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="same parts"):
        given.concat(Conditioning())


@pytest.mark.parametrize("name", DENOISERS)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = _denoiser(name, trained=True)
    condition = model.prepare(_context([2, 4]), torch.randn(2, 5))
    output = model(torch.randn(2, 3, 8, 8), torch.tensor([10.0, 900.0]), condition)
    output.square().sum().backward()
    assert isinstance(model, nn.Module)
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_new_blocks_are_the_identity() -> None:
    torch.manual_seed(0)
    tokens, embedding = torch.randn(2, 4, 16), torch.randn(2, 16)
    assert torch.equal(DiTBlock(16, 2)(tokens, embedding, None, None), tokens)
    features = torch.randn(2, 16, 4, 4)
    assert torch.equal(ResidualBlock(16, 16, 16)(features, embedding), features)
    assert torch.equal(AttentionBlock(16, 0)(features, None, None), features)


def test_a_context_that_is_masked_leaves_plain_self_attention() -> None:
    torch.manual_seed(0)
    attention = ContextAttention(16, 2, 12, zero_init=False)
    x, context = torch.randn(2, 4, 16), torch.randn(2, 3, 12)
    masked = attention(x, attention.project_context(context), torch.zeros(2, 3, dtype=torch.bool))
    torch.testing.assert_close(masked, attention(x))
    with pytest.raises(ValueError, match="without a context"):
        ContextAttention(16, 2).project_context(context)


def test_sides_and_widths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="Patches of 3 do not divide a side of 8"):
        DiT(8, CHANNELS, 32, 1, 2, patch_size=3)
    with pytest.raises(ValueError, match="multiple of 4"):
        grid_embedding(4, 6)
    with pytest.raises(ValueError, match="number of blocks"):
        UNet(CHANNELS, (16, 20), (1, 1))
    with pytest.raises(ValueError, match="cannot be halved 1 times"):
        UNet(CHANNELS, (16, 32), (1, 1))(torch.randn(1, 3, 7, 7), torch.zeros(1), Conditioning())


def test_positions_of_a_grid_differ_and_times_are_sinusoids() -> None:
    grid = grid_embedding(4, 16)
    assert grid.shape == (16, 16)
    assert len(grid.unique(dim=0)) == 16
    embedding: Tensor = sinusoidal_embedding(torch.tensor([0.0, 5.0]), 8)
    assert torch.equal(embedding[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    assert TimeEmbedding(12)(torch.tensor([0.0, 5.0])).shape == (2, 12)

"""Quantizers: round trips, straight-through gradients, codebook updates and schedules."""

import math

import pytest
import torch
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.nn.vector_quantize import (
    FSQ,
    VQ,
    GumbelQuantizer,
    Quantizer,
    kl_schedule,
    kl_to_uniform,
    temperature_schedule,
)

AnyQuantizer = FSQ | VQ | GumbelQuantizer

ROWS = (5, 4, 3)


def features(quantizer: AnyQuantizer, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*ROWS, quantizer.in_dim, generator=torch.Generator().manual_seed(seed))


def build_quantizers() -> list[AnyQuantizer]:
    torch.manual_seed(0)
    return [
        FSQ((8, 5, 2)),
        VQ(16, 6),
        VQ(16, 6, restart_dead_codes=False),
        GumbelQuantizer(16, 6, anneal_steps=10),
    ]


@pytest.mark.parametrize("quantizer", build_quantizers(), ids=lambda q: type(q).__name__)
class TestAllQuantizers:
    def test_output_has_expected_shapes(self, quantizer: AnyQuantizer) -> None:
        assert isinstance(quantizer, Quantizer)
        output = quantizer(features(quantizer))
        assert output.ids.shape == ROWS
        assert output.x.shape == (*ROWS, quantizer.out_dim)
        assert output.loss.shape == ()
        assert output.ids.min() >= 0
        assert output.ids.max() < quantizer.vocab_size

    def test_eval_output_equals_vectors_of_ids(self, quantizer: AnyQuantizer) -> None:
        z = features(quantizer)
        quantizer.eval()
        output = quantizer(z)
        assert torch.equal(output.ids, quantizer.to_ids(z))
        assert torch.equal(output.x, quantizer.to_vectors(output.ids))

    def test_inputs_are_not_modified(self, quantizer: AnyQuantizer) -> None:
        z = features(quantizer)
        before, ids = z.clone(), quantizer.to_ids(z)
        ids_before = ids.clone()
        quantizer(z)
        quantizer.to_vectors(ids)
        quantizer.after_step()
        assert torch.equal(z, before)
        assert torch.equal(ids, ids_before)

    def test_rows_are_quantized_independently(self, quantizer: AnyQuantizer) -> None:
        z = features(quantizer)
        assert torch.equal(quantizer.to_ids(z)[2:3], quantizer.to_ids(z[2:3]))

    def test_gradient_reaches_features(self, quantizer: AnyQuantizer) -> None:
        z = features(quantizer.train()).requires_grad_()
        quantizer(z).x.square().sum().backward()
        assert z.grad is not None
        assert z.grad.isfinite().all()
        assert z.grad.abs().sum() > 0

    def test_saved_state_changes_only_after_step(self, quantizer: AnyQuantizer) -> None:
        before = {name: value.clone() for name, value in quantizer.state_dict().items()}
        quantizer.train()(features(quantizer))
        assert all(
            torch.equal(before[name], value) for name, value in quantizer.state_dict().items()
        )

    def test_autocast_changes_no_id(self, quantizer: AnyQuantizer) -> None:
        z = features(quantizer)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(quantizer(z).ids, quantizer.eval().to_ids(z))


@pytest.mark.parametrize("levels", [(8, 8, 8), (7, 5, 3), (8, 6, 5), (2, 2), (4,), (16, 3)])
def test_fsq_round_trip_of_every_id(levels: tuple[int, ...]) -> None:
    fsq, ids = FSQ(levels), torch.arange(math.prod(levels))
    vectors = fsq.to_vectors(ids)
    assert len(vectors.unique(dim=0)) == len(ids)
    assert vectors.abs().max() <= 1
    bounded = vectors * fsq.zero_level
    span = (fsq.radix - 1) * 1.001 / 2
    z = ((bounded + fsq.shift) / span).atanh() - (fsq.shift / span).atanh()
    assert torch.equal(fsq.to_ids(z), ids)
    torch.testing.assert_close(fsq(z).x, vectors, rtol=0, atol=0)


@pytest.mark.parametrize("n", range(2, 18))
def test_fsq_channel_uses_exactly_its_levels(n: int) -> None:
    fsq = FSQ((n,))
    ids = fsq.to_ids(torch.linspace(-20, 20, 4001)[:, None])
    assert ids.unique().tolist() == list(range(n))
    assert (ids.diff() >= 0).all()
    assert fsq.to_vectors(fsq.to_ids(torch.zeros(1, 1))).item() == 0


def test_fsq_casts_levels_before_summing() -> None:
    fsq = FSQ((8, 8))
    level = torch.tensor([[2.9999998, -1.0000001], [3.0000002, -0.9999999]])
    assert fsq.levels_to_ids(level.round()).tolist() == [7 + 8 * 3] * 2
    z = torch.randn(10_000, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fsq.to_vectors(fsq.to_ids(z)), fsq(z).x)


def test_first_fsq_channel_is_lowest_digit() -> None:
    vectors = FSQ((8, 5, 3)).to_vectors(torch.tensor([0, 1, 8, 40]))
    torch.testing.assert_close(
        vectors, torch.tensor([[-1, -1, -1], [-0.75, -1, -1], [-1, -0.5, -1], [-1, -1, 0.0]])
    )


def test_fsq_gradient_is_that_of_bound() -> None:
    fsq = FSQ((8, 5))
    z = torch.randn(9, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (straight_through,) = torch.autograd.grad(fsq(z).x.sum(), z)
    (smooth,) = torch.autograd.grad((fsq.bound(z) / fsq.zero_level).sum(), z)
    torch.testing.assert_close(straight_through, smooth)
    assert fsq(z).loss.item() == 0


def test_fsq_with_one_level_raises() -> None:
    with pytest.raises(SensoriumError, match="at least 2"):
        FSQ((8, 1))


def test_vq_returns_nearest_code() -> None:
    torch.manual_seed(0)
    vq, z = VQ(32, 5), torch.randn(200, 5)
    assert torch.equal(vq.to_ids(z), torch.cdist(z, vq.codebook).argmin(1))


def test_vq_has_straight_through_gradient_and_commitment_loss() -> None:
    torch.manual_seed(0)
    vq, z = VQ(8, 3, commitment_weight=0.25), torch.randn(6, 3, requires_grad=True)
    output = vq(z)
    (gradient,) = torch.autograd.grad(output.x.sum(), z, retain_graph=True)
    assert torch.equal(gradient, torch.ones_like(z))
    assert torch.equal(output.x, vq.codebook[output.ids])
    (commitment,) = torch.autograd.grad(output.loss, z)
    torch.testing.assert_close(
        commitment, 0.25 * 2 * (z - vq.codebook[output.ids]).detach() / z.numel()
    )
    assert not list(vq.parameters())
    assert not vq.codebook.requires_grad


def test_codebook_follows_mean_of_assigned_features() -> None:
    torch.manual_seed(0)
    vq, z = VQ(4, 2, decay=0.9, restart_dead_codes=False), torch.randn(50, 2)
    counts, sums = torch.zeros(4), torch.zeros(4, 2)
    for _ in range(5):
        ids, old = vq(z).ids, vq.codebook.clone()
        vq.after_step()
        counts, sums = 0.9 * counts, 0.9 * sums
        for code in range(4):
            counts[code] += 0.1 * (ids == code).sum()
            sums[code] += 0.1 * z[ids == code].sum(0)
        expected = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1e-9)[:, None], old)
        torch.testing.assert_close(vq.codebook, expected)


def test_micro_batches_update_codebook_like_full_batch() -> None:
    torch.manual_seed(0)
    full, z = VQ(8, 3, restart_dead_codes=False), torch.randn(40, 3)
    parts = VQ(8, 3, restart_dead_codes=False)
    parts.load_state_dict(full.state_dict())
    full(z)
    full.after_step()
    parts(z[:10])
    parts(z[10:])
    parts.after_step()
    torch.testing.assert_close(parts.codebook, full.codebook)


def test_dead_codes_restart_deterministically() -> None:
    z = 3 + torch.randn(400, 2, generator=torch.Generator().manual_seed(0))  # far from most codes

    def train_vq(restart: bool) -> VQ:
        torch.manual_seed(1)
        vq = VQ(64, 2, restart_dead_codes=restart)
        for _ in range(20):
            vq(z)
            vq.after_step()
        return vq

    one, repeated, without = train_vq(True), train_vq(True), train_vq(False)
    assert torch.equal(one.codebook, repeated.codebook)
    assert torch.equal(one.ema_counts, repeated.ema_counts)
    assert len(one.to_ids(z).unique()) > 48 > 16 > len(without.to_ids(z).unique())


def test_unused_code_without_restart_is_unchanged() -> None:
    vq = VQ(2, 1, restart_dead_codes=False)
    vq.codebook.copy_(torch.tensor([[0.0], [100.0]]))
    for _ in range(200):
        vq(torch.zeros(3, 1))
        vq.after_step()
    assert vq.codebook.tolist() == [[0.0], [100.0]]


def test_vq_state_is_saved() -> None:
    torch.manual_seed(0)
    vq, z = VQ(16, 4), torch.randn(30, 4)
    vq(z)
    vq.after_step()
    other = VQ(16, 4)
    other.load_state_dict(vq.state_dict())
    rng_state = torch.get_rng_state()
    vq(z)
    vq.after_step()
    torch.set_rng_state(rng_state)
    other(z)
    other.after_step()
    assert torch.equal(vq.codebook, other.codebook)
    assert torch.equal(vq.ema_counts, other.ema_counts)


def test_kl_to_uniform_equals_definition_for_any_batch_size() -> None:
    logits = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(0))
    assert kl_to_uniform(torch.zeros(2, 7)).item() == pytest.approx(0, abs=1e-6)
    one_hot = torch.zeros(2, 7).index_fill(1, torch.tensor([3]), 60)
    assert kl_to_uniform(one_hot).item() == pytest.approx(math.log(7), rel=1e-5)
    q = torch.distributions.Categorical(logits=logits)
    uniform = torch.distributions.Categorical(torch.ones(7) / 7)
    expected = torch.distributions.kl_divergence(q, uniform).mean()
    torch.testing.assert_close(kl_to_uniform(logits), expected)
    torch.testing.assert_close(kl_to_uniform(torch.cat([logits, logits])), expected)


def test_dvae_schedules_start_and_end_at_paper_values() -> None:
    at = torch.linspace(0, 1, 11)
    assert [
        temperature_schedule(at[0]).item(),
        temperature_schedule(at[-1]).item(),
    ] == pytest.approx([1, 1 / 16])
    assert [kl_schedule(at[0]).item(), kl_schedule(at[-1]).item()] == pytest.approx([0, 6.6])
    assert (temperature_schedule(at).diff() < 0).all()
    assert (kl_schedule(at).diff() > 0).all()


def test_dvae_step_count_is_saved() -> None:
    dvae = GumbelQuantizer(8, 4, anneal_steps=10)
    for _ in range(5):
        dvae.after_step()
    other = GumbelQuantizer(8, 4, anneal_steps=10)
    other.load_state_dict(dvae.state_dict())
    assert other.progress.item() == 0.5
    for _ in range(50):
        dvae.after_step()
    assert dvae.progress.item() == 1


def test_dvae_logit_scale_multiplies_features() -> None:
    z = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    plain = GumbelQuantizer(8, 4, anneal_steps=10)
    scaled = GumbelQuantizer(8, 4, anneal_steps=10, logit_scale=3.0)
    scaled.load_state_dict(plain.state_dict())
    for dvae in (plain, scaled):
        dvae.step.fill_(10)
    torch.manual_seed(0)
    expected = plain(3 * z)
    torch.manual_seed(0)
    output = scaled(z)
    assert torch.equal(output.x, expected.x)
    assert output.loss == expected.loss
    assert torch.equal(output.ids, plain.to_ids(z))


def test_annealed_dvae_samples_codes_by_their_probability() -> None:
    torch.manual_seed(0)
    dvae, logits = GumbelQuantizer(4, 4, anneal_steps=1), torch.tensor([2.0, 1.0, 0.0, -1.0])
    with torch.no_grad():
        dvae.codebook.copy_(torch.eye(4))
    dvae.after_step()
    samples = dvae(logits.expand(20_000, 4)).x
    torch.testing.assert_close(samples.sum(1), torch.ones(20_000))
    frequency = torch.bincount(samples.argmax(1), minlength=4) / 20_000
    torch.testing.assert_close(frequency, logits.softmax(0), atol=0.01, rtol=0)

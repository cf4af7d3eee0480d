"""Quantizers by their identities: round trips, gradients, what moves and what does not."""

import math

import pytest
import torch
from torch import Tensor, nn

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

ROWS = (5, 4, 3)


def features(quantizer: Quantizer, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*ROWS, quantizer.in_dim, generator=torch.Generator().manual_seed(seed))


def every() -> list[Quantizer]:
    torch.manual_seed(0)
    return [
        FSQ((8, 5, 2)),
        VQ(16, 6),
        VQ(16, 6, restart_dead_codes=False),
        GumbelQuantizer(16, 6, anneal_steps=10),
    ]


@pytest.mark.parametrize("quantizer", every(), ids=lambda q: type(q).__name__)
class TestEvery:
    def test_it_keeps_the_contract(self, quantizer: Quantizer) -> None:
        assert isinstance(quantizer, Quantizer)
        found = quantizer(features(quantizer))
        assert found.ids.shape == ROWS
        assert found.x.shape == (*ROWS, quantizer.out_dim)
        assert found.loss.shape == ()
        assert found.ids.min() >= 0
        assert found.ids.max() < quantizer.vocab

    def test_afterwards_a_code_is_worth_its_vector(self, quantizer: Quantizer) -> None:
        z = features(quantizer)
        quantizer.eval()
        found = quantizer(z)
        assert torch.equal(found.ids, quantizer.to_ids(z))
        assert torch.equal(found.x, quantizer.to_vectors(found.ids))

    def test_the_callers_tensors_stay_as_they_are(self, quantizer: Quantizer) -> None:
        z = features(quantizer)
        before, ids = z.clone(), quantizer.to_ids(z)
        kept = ids.clone()
        quantizer(z), quantizer.to_vectors(ids), quantizer.after_step()
        assert torch.equal(z, before)
        assert torch.equal(ids, kept)

    def test_rows_are_coded_each_by_itself(self, quantizer: Quantizer) -> None:
        z = features(quantizer)
        assert torch.equal(quantizer.to_ids(z)[2:3], quantizer.to_ids(z[2:3]))

    def test_the_gradient_reaches_the_features(self, quantizer: Quantizer) -> None:
        z = features(quantizer.train()).requires_grad_()
        quantizer(z).x.square().sum().backward()
        assert z.grad is not None
        assert z.grad.isfinite().all()
        assert z.grad.abs().sum() > 0

    def test_nothing_lasting_moves_before_the_step_is_done(self, quantizer: nn.Module) -> None:
        before = {name: value.clone() for name, value in quantizer.state_dict().items()}
        quantizer.train()(features(quantizer))
        assert all(
            torch.equal(before[name], value) for name, value in quantizer.state_dict().items()
        )

    def test_bf16_around_it_changes_no_code(self, quantizer: Quantizer) -> None:
        z = features(quantizer)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(quantizer(z).ids, quantizer.eval().ids(z))


@pytest.mark.parametrize("levels", [(8, 8, 8), (7, 5, 3), (8, 6, 5), (2, 2), (4,), (16, 3)])
def test_every_fsq_code_comes_back(levels: tuple[int, ...]) -> None:
    fsq, ids = FSQ(levels), torch.arange(math.prod(levels))
    vectors = fsq.to_vectors(ids)
    assert len(vectors.unique(dim=0)) == len(ids)
    assert vectors.abs().max() <= 1
    bounded = vectors * fsq.zero_level  # the features that are bounded to exactly these levels
    span = (fsq.radix - 1) * 1.001 / 2
    z = ((bounded + fsq.shift) / span).atanh() - (fsq.shift / span).atanh()
    assert torch.equal(fsq.to_ids(z), ids)
    torch.testing.assert_close(fsq(z).x, vectors, rtol=0, atol=0)


@pytest.mark.parametrize("n", range(2, 18))
def test_an_fsq_channel_meets_all_its_levels_and_no_other(n: int) -> None:
    fsq = FSQ((n,))
    ids = fsq.to_ids(torch.linspace(-20, 20, 4001)[:, None])
    assert ids.unique().tolist() == list(range(n))
    assert (ids.diff() >= 0).all()
    assert fsq.to_vectors(fsq.to_ids(torch.zeros(1, 1))).item() == 0


def test_fsq_rounds_before_it_numbers() -> None:
    fsq = FSQ((8, 8))
    level = torch.tensor([[2.9999998, -1.0000001], [3.0000002, -0.9999999]])
    assert fsq._to_id(level.round()).tolist() == [7 + 8 * 3] * 2
    z = torch.randn(10_000, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fsq.to_vectors(fsq.to_ids(z)), fsq(z).x)


def test_the_first_fsq_channel_is_the_lowest_digit() -> None:
    vectors = FSQ((8, 5, 3)).to_vectors(torch.tensor([0, 1, 8, 40]))
    torch.testing.assert_close(
        vectors, torch.tensor([[-1, -1, -1], [-0.75, -1, -1], [-1, -0.5, -1], [-1, -1, 0.0]])
    )


def test_the_fsq_gradient_is_that_of_the_bound() -> None:
    fsq, z = (
        FSQ((8, 5)),
        torch.randn(9, 2, generator=torch.Generator().manual_seed(0), requires_grad=True),
    )
    (there,) = torch.autograd.grad(fsq(z).x.sum(), z)
    (smooth,) = torch.autograd.grad((fsq._bound(z) / fsq.zero_level).sum(), z)
    torch.testing.assert_close(there, smooth)
    assert fsq(z).loss.item() == 0


def test_fsq_needs_two_levels() -> None:
    with pytest.raises(SensoriumError, match="at least 2"):
        FSQ((8, 1))


def test_vq_takes_the_nearest() -> None:
    torch.manual_seed(0)
    vq, z = VQ(32, 5), torch.randn(200, 5)
    assert torch.equal(vq.to_ids(z), torch.cdist(z, vq.codebook).argmin(1))


def test_vq_passes_the_gradient_straight_through_and_commits() -> None:
    torch.manual_seed(0)
    vq, z = VQ(8, 3, commitment_weight=0.25), torch.randn(6, 3, requires_grad=True)
    found = vq(z)
    (through,) = torch.autograd.grad(found.x.sum(), z, retain_graph=True)
    assert torch.equal(through, torch.ones_like(z))
    assert torch.equal(found.x, vq.codebook[found.ids])
    (pulled,) = torch.autograd.grad(found.loss, z)
    torch.testing.assert_close(pulled, 0.25 * 2 * (z - vq.codebook[found.ids]).detach() / z.numel())
    assert not list(vq.parameters())
    assert not vq.codebook.requires_grad


def test_the_codebook_follows_the_mean_of_its_users() -> None:
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
        wanted = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1e-9)[:, None], old)
        torch.testing.assert_close(vq.codebook, wanted)


def test_a_batch_in_parts_moves_the_codebook_as_the_whole_does() -> None:
    torch.manual_seed(0)
    whole, z = VQ(8, 3, restart_dead_codes=False), torch.randn(40, 3)
    parts = VQ(8, 3, restart_dead_codes=False)
    parts.load_state_dict(whole.state_dict())
    whole(z), whole.after_step()
    parts(z[:10]), parts(z[10:]), parts.after_step()
    torch.testing.assert_close(parts.codebook, whole.codebook)


def test_dead_codes_come_back_the_same_way_each_time() -> None:
    z = 3 + torch.randn(400, 2, generator=torch.Generator().manual_seed(0))  # far from most codes

    def learned(restart: bool) -> VQ:
        torch.manual_seed(1)
        vq = VQ(64, 2, restart_dead_codes=restart)
        for _ in range(20):
            vq(z)
            vq.after_step()
        return vq

    one, same, without = learned(True), learned(True), learned(False)
    assert torch.equal(one.codebook, same.codebook)
    assert torch.equal(one.ema_counts, same.ema_counts)
    assert len(one.to_ids(z).unique()) > 48 > 16 > len(without.to_ids(z).unique())


def test_an_unused_code_without_restart_stays_where_it_is() -> None:
    vq = VQ(2, 1, restart_dead_codes=False)
    vq.codebook.copy_(torch.tensor([[0.0], [100.0]]))
    for _ in range(200):
        vq(torch.zeros(3, 1))
        vq.after_step()
    assert vq.codebook.tolist() == [[0.0], [100.0]]


def test_what_vq_learned_is_saved() -> None:
    torch.manual_seed(0)
    vq, z = VQ(16, 4), torch.randn(30, 4)
    vq(z), vq.after_step()
    other = VQ(16, 4)
    other.load_state_dict(vq.state_dict())
    chance = torch.get_rng_state()
    vq(z), vq.after_step()
    torch.set_rng_state(chance)
    other(z), other.after_step()
    assert torch.equal(vq.codebook, other.codebook)
    assert torch.equal(vq.ema_counts, other.ema_counts)


def test_kl_is_that_of_its_definition_and_no_larger_for_a_larger_batch() -> None:
    logits = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(0))
    assert kl_to_uniform(torch.zeros(2, 7)).item() == pytest.approx(0, abs=1e-6)
    sure = torch.zeros(2, 7).index_fill(1, torch.tensor([3]), 60)
    assert kl_to_uniform(sure).item() == pytest.approx(math.log(7), rel=1e-5)
    q, uniform = (
        torch.distributions.Categorical(logits=logits),
        torch.distributions.Categorical(torch.ones(7) / 7),
    )
    wanted = torch.distributions.kl_divergence(q, uniform).mean()
    torch.testing.assert_close(kl_to_uniform(logits), wanted)
    torch.testing.assert_close(kl_to_uniform(torch.cat([logits, logits])), wanted)


def test_the_dvae_moves_from_1_to_a_sixteenth_and_from_0_to_6_6() -> None:
    at = torch.linspace(0, 1, 11)
    assert [
        temperature_schedule(at[0]).item(),
        temperature_schedule(at[-1]).item(),
    ] == pytest.approx([1, 1 / 16])
    assert [kl_schedule(at[0]).item(), kl_schedule(at[-1]).item()] == pytest.approx([0, 6.6])
    assert (temperature_schedule(at).diff() < 0).all()
    assert (kl_schedule(at).diff() > 0).all()


def test_the_dvae_counts_its_updates_where_they_are_saved() -> None:
    dvae = GumbelQuantizer(8, 4, anneal_steps=10)
    for _ in range(5):
        dvae.after_step()
    other = GumbelQuantizer(8, 4, anneal_steps=10)
    other.load_state_dict(dvae.state_dict())
    assert other.progress.item() == 0.5
    for _ in range(50):
        dvae.after_step()
    assert dvae.progress.item() == 1


def test_a_sharp_dvae_takes_features_for_so_many_times_larger_logits() -> None:
    z = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    plain, sharp = (
        GumbelQuantizer(8, 4, anneal_steps=10),
        GumbelQuantizer(8, 4, anneal_steps=10, logit_scale=3.0),
    )
    sharp.load_state_dict(plain.state_dict())
    for dvae in (plain, sharp):
        dvae.step.fill_(10)
    torch.manual_seed(0)
    expected = plain(3 * z)
    torch.manual_seed(0)
    found = sharp(z)
    assert torch.equal(found.x, expected.x)
    assert found.loss == expected.loss
    assert torch.equal(found.ids, plain.to_ids(z))


def test_a_cool_dvae_draws_codes_as_often_as_their_logits_say() -> None:
    torch.manual_seed(0)
    dvae, logits = GumbelQuantizer(4, 4, anneal_steps=1), torch.tensor([2.0, 1.0, 0.0, -1.0])
    with torch.no_grad():
        dvae.codebook.copy_(torch.eye(4))
    dvae.after_step()
    drawn = dvae(logits.expand(20_000, 4)).x
    torch.testing.assert_close(drawn.sum(1), torch.ones(20_000))
    often = torch.bincount(drawn.argmax(1), minlength=4) / 20_000
    torch.testing.assert_close(often, logits.softmax(0), atol=0.01, rtol=0)

"""Diffusion: conversions between predictions, weights, times, samplers, guidance and thresholds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sensorium.objectives.diffusion import (
    PREDICTIONS,
    CosineSchedule,
    DiffusionProcess,
    DiscreteSchedule,
    FlowSchedule,
    NoiseSchedule,
    Prediction,
    default_logit_mean,
    denoising_loss,
    logit_normal_times,
    min_snr_weight,
)
from sensorium.objectives.samplers import (
    Guidance,
    KnownRegion,
    RowNoise,
    Sampler,
    SamplerConfig,
    Threshold,
    invert,
    sample,
    shifted_times,
)

SCHEDULES: dict[str, NoiseSchedule] = {
    "flow": FlowSchedule(),
    "cosine": CosineSchedule(),
    "linear": DiscreteSchedule.linear(),
}
FLOW = DiffusionProcess(FlowSchedule(), "flow")


@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [(s, p) for s in SCHEDULES for p in PREDICTIONS if (s, p) != ("flow", "epsilon")],
)
def test_conversions_round_trip(schedule: str, prediction: Prediction) -> None:
    process = DiffusionProcess(SCHEDULES[schedule], prediction)
    t = torch.tensor([0.1, 0.4, 0.7, 0.9], dtype=torch.float64)
    x0, noise = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64)
    x = process.add_noise(x0, noise, t)
    found_x0, found_noise = process.to_data_and_noise(process.target(x0, noise, t), x, t)
    torch.testing.assert_close(found_x0, x0, atol=1e-9, rtol=0)
    torch.testing.assert_close(found_noise, noise, atol=1e-9, rtol=0)
    torch.testing.assert_close(process.noise_of(x0, x, t), noise, atol=1e-9, rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_schedules_go_from_data_to_noise(schedule: str) -> None:
    alpha, sigma = SCHEDULES[schedule].alpha_sigma(torch.linspace(0, 1, 101))
    assert alpha[0] > 0.999
    assert alpha[-1] < 0.01
    assert sigma[0] < 0.02
    assert sigma[-1] > 0.999
    assert (alpha.diff() < 0).all()
    if schedule != "flow":
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(101))


def test_zero_terminal_snr_ends_without_signal_and_refuses_noise_prediction() -> None:
    for schedule in (DiscreteSchedule.linear(zero_snr=True), FlowSchedule(), CosineSchedule(1.0)):
        alpha, _ = schedule.alpha_sigma(torch.ones(1))
        assert alpha.item() == 0
        with pytest.raises(ValueError, match="Predict v, x0 or flow"):
            DiffusionProcess(schedule, "epsilon")
    first = DiscreteSchedule.linear().alphas_cumprod[0]
    assert DiscreteSchedule.linear(zero_snr=True).alphas_cumprod[0] == pytest.approx(first.item())


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weighs_the_error_of_the_data_equally_for_all_predictions(
    prediction: Prediction,
) -> None:
    process = DiffusionProcess(CosineSchedule(), prediction)
    t = torch.tensor([0.05, 0.3, 0.8], dtype=torch.float64)
    x0, noise, off = torch.randn(3, 3, 1, 4, 4, dtype=torch.float64)
    x = process.add_noise(x0, noise, t)
    target = process.target(x0, noise, t)
    error = off.square().flatten(1).mean(1)
    moved, _ = process.to_data_and_noise(target + off, x, t)
    data_error = (moved - x0).square().flatten(1).mean(1)
    alpha, sigma = process.schedule.alpha_sigma(t)
    snr = (alpha / sigma) ** 2
    torch.testing.assert_close(
        min_snr_weight(process, t, 5.0) * error, snr.clamp(max=5) * data_error
    )


def test_min_snr_of_noise_and_velocity_are_those_of_the_paper() -> None:
    t = torch.tensor([0.05, 0.3, 0.8])
    alpha, sigma = CosineSchedule().alpha_sigma(t)
    snr = (alpha / sigma) ** 2
    epsilon = DiffusionProcess(CosineSchedule(), "epsilon")
    velocity = DiffusionProcess(CosineSchedule(), "v")
    torch.testing.assert_close(min_snr_weight(epsilon, t), snr.clamp(max=5) / snr)
    torch.testing.assert_close(min_snr_weight(velocity, t), snr.clamp(max=5) / (snr + 1))


def test_times_are_logit_normal_and_stratified() -> None:
    t = logit_normal_times(4000, 1.2, 0.7)
    logit = t.logit()
    assert logit.mean().item() == pytest.approx(1.2, abs=0.01)
    assert logit.std().item() == pytest.approx(0.7, abs=0.01)
    assert (logit.diff() > 0).float().mean().item() == pytest.approx(0.5, abs=0.05)  # shuffled
    few = logit_normal_times(2, 0.0, 1.0).sort().values  # one in each half
    assert few[0] < 0.5 < few[1]
    assert default_logit_mean(48) == pytest.approx(default_logit_mean(24) + math.log(2))


def test_the_loss_is_zero_for_a_perfect_denoiser() -> None:
    x0 = torch.randn(4, 3, 6, 6)
    t = torch.tensor([0.2, 0.4, 0.6, 0.8])

    def perfect(x: Tensor, times: Tensor) -> Tensor:
        torch.testing.assert_close(times, t * 1000)
        return (x - (1 - t.view(-1, 1, 1, 1)) * x0) / t.view(-1, 1, 1, 1) - x0

    assert denoising_loss(FLOW, perfect, x0, t).max() < 1e-9
    zero = denoising_loss(FLOW, lambda x, _: torch.zeros_like(x), x0, t)
    assert zero.shape == (4,)
    assert zero.min() > 0.5


def _point_denoiser(process: DiffusionProcess, x0: Tensor):
    """Return the exact denoiser of data that are always x0."""

    def denoise(x: Tensor, times: Tensor) -> Tensor:
        t = times / 1000
        return process.target(x0, process.noise_of(x0, x, t), t)

    return denoise


def _gaussian_denoiser(process: DiffusionProcess, mean: float, std: float):
    """Return the exact denoiser of normal data."""

    def denoise(x: Tensor, times: Tensor) -> Tensor:
        t = times / 1000
        alpha, sigma = process.coefficients(t, x)
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        x0 = mean + gain * (x - alpha * mean)
        return process.target(x0, process.noise_of(x0, x, t), t)

    return denoise


SAMPLER_CASES: list[tuple[Sampler, str, Prediction]] = [
    ("ddim", "cosine", "epsilon"),
    ("ddim", "linear", "v"),
    ("ddim", "flow", "flow"),
    ("ddpm", "cosine", "epsilon"),
    ("euler", "flow", "flow"),
    ("heun", "flow", "x0"),
    ("dpm++", "cosine", "v"),
    ("dpm++", "flow", "flow"),
]


@pytest.mark.parametrize(("sampler", "schedule", "prediction"), SAMPLER_CASES)
def test_every_sampler_finds_data_that_are_a_point(
    sampler: Sampler, schedule: str, prediction: Prediction
) -> None:
    process = DiffusionProcess(SCHEDULES[schedule], prediction)
    x0 = torch.rand(2, 3, 4, 4) * 2 - 1
    noise = RowNoise([(0, 0), (0, 1)], (3, 4, 4))
    x = sample(
        _point_denoiser(process, x0),
        process,
        noise.draw(),
        SamplerConfig(sampler, steps=5),
        step_noise=noise.draw,
    )
    torch.testing.assert_close(x, x0, atol=2e-3, rtol=0)


@pytest.mark.parametrize(("sampler", "schedule", "prediction"), SAMPLER_CASES)
def test_every_sampler_gives_the_distribution(
    sampler: Sampler, schedule: str, prediction: Prediction
) -> None:
    process = DiffusionProcess(SCHEDULES[schedule], prediction)
    noise = RowNoise([(0, 0)], (4, 50, 50))
    x = sample(
        _gaussian_denoiser(process, 0.3, 0.5),
        process,
        noise.draw(),
        SamplerConfig(sampler, steps=100, shift=1.0),
        step_noise=noise.draw,
    )
    assert x.mean().item() == pytest.approx(0.3, abs=0.03)
    assert x.std().item() == pytest.approx(0.5, abs=0.03)


def test_second_order_samplers_are_nearer_to_the_exact_flow_than_euler() -> None:
    denoise = _gaussian_denoiser(FLOW, 0.0, 0.3)
    x = torch.linspace(-2, 2, 64).view(1, 1, 8, 8)

    def error(sampler: Sampler, steps: int) -> float:
        result = sample(denoise, FLOW, x, SamplerConfig(sampler, steps=steps, shift=1.0))
        return (result - 0.3 * x).abs().max().item()  # the exact flow scales by the deviation

    euler = error("euler", 64)
    assert 0.4 < euler / error("euler", 32) < 0.6  # first order
    assert error("heun", 64) / error("heun", 32) < 0.35  # second order
    assert error("heun", 64) < 0.1 * euler
    assert error("dpm++", 64) < 0.3 * euler


def test_euler_is_ddim_without_noise() -> None:
    denoise = _gaussian_denoiser(FLOW, 0.1, 0.4)
    x = torch.randn(2, 3, 4, 4)
    results = [sample(denoise, FLOW, x, SamplerConfig(name, steps=6)) for name in ("ddim", "euler")]
    assert torch.equal(*results)


def test_inversion_finds_the_noise_of_an_image() -> None:
    process = DiffusionProcess(CosineSchedule(), "v")
    denoise = _gaussian_denoiser(process, 0.2, 0.5)
    config = SamplerConfig("ddim", steps=200, shift=1.0)
    x0 = torch.rand(2, 1, 4, 4)
    noise = invert(denoise, process, x0, config.times())
    torch.testing.assert_close(sample(denoise, process, noise, config), x0, atol=0.02, rtol=0)


def test_guidance_is_a_line_through_both_predictions_and_costs_nothing_when_off() -> None:
    conditional, unconditional = torch.randn(2, 2, 3)
    assert torch.equal(Guidance(1.0).combine(conditional, unconditional), conditional)
    torch.testing.assert_close(
        Guidance(3.0).combine(conditional, unconditional),
        unconditional + 3 * (conditional - unconditional),
    )
    assert not Guidance(1.0).is_on(0.5)
    interval = Guidance(2.0, (0.2, 0.8))
    assert [interval.is_on(t) for t in (0.1, 0.2, 0.5, 0.8, 0.9)] == [
        False,
        True,
        True,
        True,
        False,
    ]


def test_dynamic_thresholding_divides_by_the_quantile_of_each_row() -> None:
    x0 = torch.stack([torch.linspace(-0.5, 0.5, 1000), torch.linspace(-4, 4, 1000)])
    limited = Threshold("dynamic", 0.995)(x0)
    assert torch.equal(limited[0], x0[0])  # within the range: unchanged
    scale = x0[1].abs().quantile(0.995)
    torch.testing.assert_close(limited[1], x0[1].clamp(-scale, scale) / scale)
    assert torch.equal(Threshold("static")(x0), x0.clamp(-1, 1))
    assert Threshold()(x0) is x0


def test_the_noise_is_derived_anew_from_thresholded_data() -> None:
    process = DiffusionProcess(CosineSchedule(), "epsilon")
    x0 = torch.full((1, 1, 2, 2), 3.0)  # outside the range
    seen: list[Tensor] = []

    def denoise(x: Tensor, times: Tensor) -> Tensor:
        seen.append(x)
        return process.noise_of(x0, x, times / 1000)

    start = torch.randn(1, 1, 2, 2)
    config = SamplerConfig("ddim", steps=2, shift=1.0, threshold=Threshold("static"))
    result = sample(denoise, process, start, config)
    torch.testing.assert_close(result, torch.ones(1, 1, 2, 2), atol=0.02, rtol=0)
    t, s = torch.tensor([1.0]), torch.tensor([0.5])
    noise = process.noise_of(torch.ones_like(x0), start, t)
    torch.testing.assert_close(seen[1], process.add_noise(torch.ones_like(x0), noise, s))


def test_the_noise_of_a_row_depends_on_its_seeds_alone() -> None:
    alone = RowNoise([(7, 3)], (2, 2))
    among = RowNoise([(7, 1), (7, 3), (8, 3)], (2, 2))
    for _ in range(3):
        row, rows = alone.draw(), among.draw()
        assert torch.equal(row[0], rows[1])
        assert not torch.equal(rows[1], rows[2])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), sampler=st.sampled_from(["ddim", "euler", "heun", "dpm++"]))
def test_given_pixels_are_equal_in_the_result(seed: int, sampler: Sampler) -> None:
    rng = torch.Generator().manual_seed(seed)
    x0 = torch.rand(2, 3, 6, 6, generator=rng) * 2 - 1
    mask = torch.rand(2, 1, 6, 6, generator=rng) < 0.5
    noise = torch.randn(2, 3, 6, 6, generator=rng)
    known = KnownRegion(x0, mask, noise)
    denoise = _gaussian_denoiser(FLOW, 0.0, 0.5)
    result = sample(denoise, FLOW, noise, SamplerConfig(sampler, steps=4), known=known)
    given_pixels = ~mask.expand_as(x0)
    assert torch.equal(result[given_pixels], x0[given_pixels])


def test_shifted_times_start_and_end_where_they_should() -> None:
    assert shifted_times(4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    shifted = shifted_times(8, 3.5, 0.6)
    assert shifted[0] == pytest.approx(0.6)
    assert shifted[-1] == 0
    assert shifted[4] > 0.3
    assert shifted == sorted(shifted, reverse=True)


def test_samplers_refuse_what_they_cannot_do() -> None:
    process = DiffusionProcess(CosineSchedule(), "v")
    x = torch.randn(1, 1, 2, 2)
    with pytest.raises(ValueError, match="needs a flow"):
        sample(lambda x, _: x, process, x, SamplerConfig("heun"))
    with pytest.raises(ValueError, match="needs noise for each step"):
        sample(lambda x, _: x, process, x, SamplerConfig("ddpm"))


def test_progress_is_told_with_the_predicted_data() -> None:
    steps: list[int] = []
    shapes: list[torch.Size] = []

    def on_step(step: int, x0: Tensor) -> None:
        steps.append(step)
        shapes.append(x0.shape)

    x = torch.randn(2, 3, 4, 4)
    sample(_gaussian_denoiser(FLOW, 0, 1), FLOW, x, SamplerConfig(steps=3), on_step=on_step)
    assert steps == [1, 2, 3]
    assert set(shapes) == {x.shape}

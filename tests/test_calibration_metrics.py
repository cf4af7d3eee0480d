"""Tests of calibration metrics against exact values and identities."""

import math

import pytest
import torch
import torch.nn.functional as F

from sensorium.metrics.calibration import (
    MAX_TEMPERATURE,
    compute_conformal_quantiles,
    compute_reliability,
    conformal_scores,
    conformal_sets,
    fit_sigmoid_temperature,
    fit_softmax_temperature,
    fit_std_scale,
    risk_coverage_curve,
    top_class,
)

CALIBRATED = torch.tensor(
    [[0.5, 0.25, 0.25]] * 4 + [[0.1, 0.2, 0.7]] * 10
).log()  # with CLASSES as labels
CLASSES = torch.tensor([0, 0, 1, 2] + [0] + [1] * 2 + [2] * 7)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Temperature


@pytest.mark.parametrize("scale", [1.0, 0.3, 4.0])
def test_softmax_temperature_recovers_a_known_factor(scale: float) -> None:
    assert fit_softmax_temperature(CALIBRATED * scale, CLASSES) == pytest.approx(scale, rel=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.3, 4.0])
def test_sigmoid_temperature_recovers_a_known_factor(scale: float) -> None:
    logits = torch.tensor([0.25] * 4 + [0.8] * 5).logit()[:, None] * scale
    y = torch.tensor([1, 0, 0, 0, 1, 1, 1, 1, 0], dtype=torch.bool)[:, None]
    assert fit_sigmoid_temperature(logits, y) == pytest.approx(scale, rel=1e-5)
    both = torch.cat([logits, logits], 1), torch.cat([y, y], 1)
    assert fit_sigmoid_temperature(*both) == pytest.approx(scale, rel=1e-5)


def test_fitted_temperature_maximizes_the_likelihood() -> None:
    logits, y = (
        torch.randn(200, 5, generator=seeded()) * 3,
        torch.randint(0, 5, (200,), generator=seeded(1)),
    )
    y = torch.where(torch.rand(200, generator=seeded(2)) < 0.6, logits.argmax(1), y)
    best = fit_softmax_temperature(logits, y)
    losses = {t: F.cross_entropy(logits / t, y).item() for t in (1.0, best * 0.9, best, best * 1.1)}
    assert min(losses, key=lambda t: losses[t]) == best
    assert torch.equal((logits / best).argmax(1), logits.argmax(1))


@pytest.mark.parametrize("n", [20, 200])
def test_label_smoothing_limits_the_confidence_of_few_correct_rows(n: int) -> None:
    label_smoothing = 1 / (n + 2)
    y = torch.arange(n) % 2
    both = F.one_hot(y, 2).float() * 5
    p = (both / fit_softmax_temperature(both, y, label_smoothing)).softmax(1).gather(1, y[:, None])
    assert torch.allclose(p, torch.tensor(1 - label_smoothing / 2), atol=1e-5)
    one = both[:, :1] - 2.5
    p = (one / fit_sigmoid_temperature(one, y[:, None] == 0, label_smoothing)).sigmoid()
    assert torch.allclose(
        p, torch.where(y[:, None] == 0, 1 - label_smoothing / 2, label_smoothing / 2), atol=1e-5
    )


def test_temperature_is_finite_for_always_right_always_wrong_and_no_rows() -> None:
    logits = torch.eye(3)
    assert fit_softmax_temperature(logits, torch.arange(3)) == pytest.approx(1 / MAX_TEMPERATURE)
    assert fit_softmax_temperature(logits, torch.tensor([1, 2, 0])) == pytest.approx(
        MAX_TEMPERATURE
    )
    assert fit_softmax_temperature(logits[:0], torch.zeros(0, dtype=torch.long)) == 1
    assert fit_sigmoid_temperature(logits[:0], logits[:0].bool()) == 1


def test_std_scale_gives_errors_unit_variance() -> None:
    errors = torch.randn(1000, generator=seeded())
    assert fit_std_scale(errors * 3 / errors.square().mean().sqrt()) == pytest.approx(3)
    assert fit_std_scale(errors[:0]) == 1
    assert fit_std_scale(torch.zeros(5)) > 0


# Reliability


def test_calibrated_probabilities_have_zero_calibration_error() -> None:
    confidence = torch.tensor([0.25] * 4 + [0.8] * 5 + [1.0])
    correct = torch.tensor([1, 0, 0, 0, 1, 1, 1, 1, 0, 1], dtype=torch.bool)
    assert compute_reliability(confidence, correct).expected_calibration_error == pytest.approx(
        0, abs=1e-7
    )


def test_calibration_error_matches_hand_computation() -> None:
    reliability = compute_reliability(
        torch.tensor([0.05, 0.15, 0.95, 1.0]), torch.tensor([False, True, True, False]), bins=2
    )
    assert reliability.confidence.tolist() == pytest.approx([0.1, 0.975])
    assert reliability.accuracy.tolist() == [0.5, 0.5]
    assert reliability.fraction.tolist() == [0.5, 0.5]
    assert reliability.expected_calibration_error == pytest.approx((0.4 + 0.475) / 2)


def test_temperature_lowers_the_error_of_overconfident_logits() -> None:
    logits = torch.randn(4000, 4, generator=seeded())
    y = logits.softmax(1).multinomial(1, generator=seeded(1))[:, 0]
    overconfident = logits * 5
    t = fit_softmax_temperature(overconfident, y)
    assert t == pytest.approx(5, rel=0.1)
    before, after = (
        compute_reliability(*top_class(x.softmax(1), y)).expected_calibration_error
        for x in (overconfident, overconfident / t)
    )
    assert after < 0.03 < 0.2 < before


# Conformal bounds


def test_conformal_quantiles_match_hand_computation() -> None:
    scores = torch.tensor([3.0, 1.0, 2.0, 4.0])  # N + 1 = 5
    assert compute_conformal_quantiles(scores, [0.2, 0.21, 0.8, 0.81, 0.0]).tolist() == [
        1,
        2,
        4,
        math.inf,
        1,
    ]
    assert compute_conformal_quantiles(scores[:0], [0.5]).tolist() == [math.inf]


@pytest.mark.parametrize(("n", "level"), [(19, 0.95), (9, 0.5), (30, 0.8), (50, 0.9)])
def test_new_row_is_covered_with_the_exact_probability(n: int, level: float) -> None:
    trials = 4000
    scores = torch.randn(trials, n + 1, generator=seeded()).abs()  # exchangeable rows
    bounds = torch.cat([compute_conformal_quantiles(row[:n], [level]) for row in scores])
    covered = (scores[:, n] <= bounds).double().mean().item()
    exact = math.ceil(round((n + 1) * level, 9)) / (n + 1)
    assert exact >= level
    assert abs(covered - exact) < 4 * math.sqrt(exact * (1 - exact) / trials)


def test_too_few_rows_have_infinite_quantiles() -> None:
    assert compute_conformal_quantiles(torch.rand(18), [0.95]).isinf().all()
    assert compute_conformal_quantiles(torch.rand(19), [0.95]).isfinite().all()


def test_conformal_sets_reach_their_coverage() -> None:
    logits = torch.randn(6000, 6, generator=seeded()) * 2
    y = (
        (logits * 0.3).softmax(1).multinomial(1, generator=seeded(1))[:, 0]
    )  # the model is overconfident
    p = logits.softmax(1)
    for level in (0.5, 0.8, 0.95):
        bound = compute_conformal_quantiles(conformal_scores(p[:3000], y[:3000]), [level]).item()
        sets = conformal_sets(p[3000:], bound)
        score_coverage = (conformal_scores(p[3000:], y[3000:]) <= bound).double().mean().item()
        assert abs(score_coverage - level) < 4 * math.sqrt(level * (1 - level) * 2 / 3000)
        assert sets.gather(1, y[3000:, None]).double().mean().item() >= score_coverage
        assert sets.any(1).all()
        assert sets.gather(1, p[3000:].argmax(1, keepdim=True)).all()


def test_conformal_sets_match_hand_computation() -> None:
    p = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]])
    assert conformal_scores(p, torch.tensor([1, 3])).tolist() == pytest.approx(
        [0.7, 1.0]
    )  # 3: an unseen class
    assert conformal_sets(p, 0.7).tolist() == [[True, True, False], [False, True, True]]
    assert conformal_sets(p, 0.0).tolist() == [[True, False, False], [False, True, False]]
    assert conformal_sets(p, 1.0).all()
    assert conformal_sets(p, math.inf).all()


# Abstaining


def test_risk_coverage_curve_matches_hand_computation() -> None:
    curve = risk_coverage_curve(
        torch.tensor([0.9, 0.5, 0.7, 0.7]), torch.tensor([0.0, 1.0, 0.0, 1.0])
    )
    assert curve.threshold.tolist() == pytest.approx([0.9, 0.7, 0.5])
    assert curve.coverage.tolist() == pytest.approx([0.25, 0.75, 1.0])
    assert curve.risk.tolist() == pytest.approx([0, 1 / 3, 1 / 2])
    assert curve.aurc == pytest.approx((0 + 2 / 3 + 1 / 2) / 4)
    assert curve.threshold_for_coverage(0.5) == pytest.approx(0.7)
    assert curve.threshold_for_coverage(1.0) == 0.5
    assert curve.threshold_for_risk(0.5) == pytest.approx(0.7)
    assert curve.threshold_for_risk(0.6) == 0.5
    assert curve.threshold_for_risk(0.2) == math.inf


def test_few_error_free_rows_do_not_reach_a_low_risk() -> None:
    curve_18 = risk_coverage_curve(torch.linspace(0.5, 1, 18), torch.zeros(18))
    curve_19 = risk_coverage_curve(torch.linspace(0.5, 1, 19), torch.zeros(19))
    assert curve_18.threshold_for_risk(0.05) == math.inf
    assert curve_19.threshold_for_risk(0.05) == 0.5


def test_threshold_keeps_its_risk_on_new_rows() -> None:
    p = torch.rand(4000, generator=seeded()) / 2 + 0.5
    wrong = (torch.rand(4000, generator=seeded(1)) > p).double()  # calibrated
    threshold = risk_coverage_curve(p[:2000], wrong[:2000]).threshold_for_risk(0.1)
    answered = p[2000:] >= threshold
    n, risk = int(answered.sum()), wrong[2000:][answered].mean().item()
    assert n > 600
    assert risk < 0.1 + 4 * math.sqrt(0.09 / n)

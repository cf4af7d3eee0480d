"""Tests of the training loop, the optimizer step, the metrics log and the model card."""

import json
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import PIL.Image
import pytest
import torch
from fixtures import tiny_recipe
from fixtures.colored_squares import TINY_CLIP, colored_squares
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.evaluation.spec import EvaluationSpec, ValidationResult
from sensorium.recipes import RECIPES
from sensorium.recipes.recipe import Recipe
from sensorium.training import run_setup
from sensorium.training.loop import train
from sensorium.training.metrics_log import (
    MetricsLog,
    draw_training_curve,
    format_duration,
    read_metrics,
)
from sensorium.training.nonfinite import NonFiniteError
from sensorium.training.train_step import choose_precision


def read_entries(folder: Path, key: str) -> list[Any]:
    """Return the values of a key in metrics.jsonl."""
    return [entry[key] for entry in read_metrics(folder / "metrics.jsonl") if key in entry]


def read_progress(folder: Path) -> dict[str, Any]:
    """Return the progress of the last checkpoint."""
    checkpoint = max((folder / "state").glob("step-*"))
    return json.loads((checkpoint / "state.json").read_text())["progress"]


def with_objective(objective: Callable[..., Any], **changes: Any) -> Callable[..., Recipe]:
    """Return tiny_recipe.guess with another objective."""

    def guess(schema: Any, *, dim: int = 8, dropout: float = 0.0) -> Recipe:
        return replace(
            tiny_recipe.guess(schema, dim=dim, dropout=dropout), objective=objective, **changes
        )

    return guess


def test_training_learns_and_writes_log_curve_and_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    model = train(
        tiny_recipe.guess,
        tiny_recipe.rows(),
        out=out,
        epochs=20,
        dropout=0.0,
        eval_interval=5,
        checkpoint_interval=10,
    )
    losses, rates = read_entries(out, "loss"), read_entries(out, "lr")
    assert np.mean(losses[-7:]) < 0.5 * np.mean(losses[:7])
    assert len(losses) == 140
    assert max(rates) == pytest.approx(1e-2)
    assert rates[0] == pytest.approx(1e-2 / 7)
    assert rates[-1] < 1e-5
    evaluations = read_entries(out, "evaluation")
    x = [[1.0, 0.5, 0.2]]
    assert len(evaluations) == 4
    assert model.predict(x=x).shape == (1,)
    printed = capsys.readouterr()
    assert "step 1/140" in printed.err
    assert "samples/s" in printed.err
    assert "left" in printed.err
    assert f"fit {max(e['fit'] for e in evaluations):.4g} at step" in printed.out
    assert printed.out.count("\n  sensorium ") == 3
    curve = ElementTree.parse(out / "curve.svg").getroot()
    titles = [title.text for title in curve.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["training loss", "validation fit"]
    card = (out / "README.md").read_text()
    for text in (
        "| train | 56 |",
        "| dim | 8 |",
        "Licence",
        "sn.load",
        model.fingerprint,
        "torch 2",
        "| fit |",
    ):
        assert text in card
    assert {p.name for p in out.iterdir()} == {
        "README.md",
        "config.json",
        "curve.svg",
        "metrics.jsonl",
        "model.safetensors",
        "schema.json",
        "state",
        "trained_rows.safetensors",
    }


def test_samples_are_written_at_each_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    data = colored_squares()
    model = train(
        RECIPES["clip"], data, out=tmp_path / "run", epochs=2, quiet=True, size="base", **TINY_CLIP
    )
    paths = sorted((tmp_path / "run" / "samples").iterdir())
    assert [path.name for path in paths] == ["step-000004.png", "step-000008.png"]
    for path in paths:
        with PIL.Image.open(path) as image:
            assert min(image.size) >= 16
            assert len(image.convert("RGB").getcolors(1_000_000) or []) > 10
    vectors = model.embed(text=["a red square", "a blue square"])
    assert vectors.shape[0] == 2
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert (tmp_path / "run" / "tokenizer.json").exists()
    assert model.config.recipe == "clip"


def test_invalid_keyword_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(
        TypeError, match=r"unexpected keyword argument 'epoch'\. Did you mean 'epochs'"
    ):
        train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", epoch=3)
    assert not (tmp_path / "run").exists()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"lr": -1.0}, "--lr must be at least 0, not -1.0"),
        ({"ema_decay": 1.5}, "--ema-decay must be at most 1, not 1.5"),
        ({"precision": "fp8"}, "--precision 'fp8' is not one of auto, fp32, bf16"),
        ({"optimizer": "adamm"}, "--optimizer 'adamm' is not one of adamw"),
        ({"grad_accumulation_steps": 0}, "--grad-accumulation-steps must be at least 1, not 0"),
    ]
    for keyword, message in cases:
        with pytest.raises(SensoriumError, match=message):
            train(
                tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", quiet=True, **keyword
            )
    train(
        tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", epochs=0.1, quiet=True
    )  # none of them has made it a run


def test_run_folder_must_be_new_and_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        assert train(tiny_recipe.guess, tiny_recipe.rows(), epochs=0.1, quiet=True).folder == Path(
            f"runs/guess-000{number}"
        )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(SensoriumError, match=r"full is not empty \(thesis.txt, ...\)"):
        train(tiny_recipe.guess, tiny_recipe.rows(), out="full", quiet=True)
    with pytest.raises(
        SensoriumError, match=r"full/thesis.txt/run is not writable: Not a directory.*--out"
    ):
        train(tiny_recipe.guess, tiny_recipe.rows(), out="full/thesis.txt/run", quiet=True)


def test_missing_training_rows_are_one_clear_error(tmp_path: Path) -> None:
    data = tiny_recipe.rows()
    data.splits["train"] = data.splits["train"][:0]
    with pytest.raises(
        SensoriumError, match=r"tiny has no training rows; its splits are train, val"
    ):
        train(tiny_recipe.guess, data, out=tmp_path / "run", quiet=True)


def test_without_validation_rows_the_last_weights_are_saved(tmp_path: Path) -> None:
    data = tiny_recipe.rows()
    del data.splits["val"]
    train(tiny_recipe.guess, data, out=tmp_path / "run", epochs=2, quiet=True)
    assert "no validation rows" in (tmp_path / "run" / "README.md").read_text()
    assert read_progress(tmp_path / "run")["best_step"] == 14


def test_training_keeps_the_callers_random_state(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", epochs=1, quiet=True)
    assert torch.equal(before, torch.get_rng_state())


def test_equal_seeds_give_equal_weights(tmp_path: Path) -> None:
    fingerprints = [
        train(
            tiny_recipe.guess,
            tiny_recipe.rows(),
            out=tmp_path / str(i),
            epochs=1,
            quiet=True,
            seed=seed,
        ).fingerprint
        for i, seed in enumerate((0, 0, 1))
    ]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_training_works_outside_the_main_thread(tmp_path: Path) -> None:
    models: list[Any] = []
    thread = threading.Thread(
        target=lambda: models.append(
            train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", epochs=1, quiet=True)
        )
    )
    thread.start()
    thread.join()
    assert models[0].predict(x=[[0.0, 0.0, 0.0]]).shape == (1,)


def test_early_stopping_and_metrics_to_minimize(tmp_path: Path) -> None:
    values = iter([0.1, 0.5, 0.4, 0.5, 0.3, 0.9])
    make = with_objective(
        tiny_recipe.objective,
        evaluation=EvaluationSpec(
            metric="fit",
            mode="max",
            validate=lambda *_: ValidationResult({"fit": next(values)}),
        ),
    )
    train(
        make,
        tiny_recipe.rows(),
        out=tmp_path / "run",
        epochs=9,
        early_stopping_patience=3,
        quiet=True,
    )
    assert len(read_entries(tmp_path / "run", "evaluation")) == 5
    assert len(read_entries(tmp_path / "run", "loss")) == 35
    losses = iter([0.4, 0.2, 0.3, 0.1])
    make = with_objective(
        tiny_recipe.objective,
        evaluation=EvaluationSpec(
            metric="val_loss",
            mode="min",
            validate=lambda *_: ValidationResult({"val_loss": next(losses)}),
        ),
    )
    train(make, tiny_recipe.rows(), out=tmp_path / "loss", epochs=4, quiet=True)
    assert read_progress(tmp_path / "loss")["best_metric"] == 0.1


class FailsForOneRow(nn.Module):
    """A layer whose output is infinite for large inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where((x[:, :1] > 2.2), x.new_tensor(math.inf), x)


def failing_recipe(schema: Any, *, dim: int = 8) -> Recipe:
    recipe = tiny_recipe.guess(schema, dim=dim, dropout=0.0)
    model = nn.Sequential(nn.Identity(), FailsForOneRow(), recipe.model)
    return replace(recipe, model=model)


def test_nonfinite_loss_names_module_and_row_before_the_update(tmp_path: Path) -> None:
    data, out = tiny_recipe.rows(), tmp_path / "run"
    row = 11
    data.table.columns["a"][row] = 30.0
    with pytest.raises(NonFiniteError) as error:
        train(
            failing_recipe,
            data,
            out=out,
            batch_size=4,
            checkpoint_interval=1 / 14,
            eval_interval=0,
            quiet=True,
        )
    step = len(read_entries(out, "loss")) + 1
    assert str(error.value).startswith(
        f"Step {step}: the loss of model is nan; the first non-finite value is in the output of "
        f"module 1, samples tiny_recipe.csv:{row + 2} (row {row}). The weights were not updated"
    )
    saved = sorted(p.name for p in (out / "state").iterdir())
    assert saved[-1:] == ([f"step-{step - 1:06d}"] if step > 1 else [])


@pytest.mark.parametrize("faster", ["fp32", "bf16"])
def test_measured_precision_gives_the_same_run_as_a_named_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faster: str
) -> None:
    """The run equals one with that precision: measuring changes no weights or random state."""

    def choose(*arguments: Any) -> str:
        assert choose_precision(*arguments) in ("fp32", "bf16")
        return faster

    monkeypatch.setattr(run_setup, "choose_precision", choose)
    monkeypatch.setattr(run_setup, "MIN_STEPS_TO_BENCHMARK", 1)
    auto = train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "auto", epochs=1, quiet=True)
    named = train(
        tiny_recipe.guess,
        tiny_recipe.rows(),
        out=tmp_path / "named",
        epochs=1,
        quiet=True,
        precision=faster,
    )
    assert auto.fingerprint == named.fingerprint
    assert auto.config.precision == faster
    assert auto.config.keywords["precision"] == "auto"


def test_log_is_cut_to_the_resumed_step(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n{"step": 3, "lo'
    )
    assert [e["step"] for e in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    with MetricsLog(tmp_path, 9, 1, 4, quiet=True) as log:
        log.log_step(2, {"loss": 1.25, "lr": 0.1})
    assert read_entries(tmp_path, "loss") == [2.0, 1.25]


def test_curve_of_empty_nonfinite_and_long_logs() -> None:
    for entries in (
        [],
        [{"step": 1, "loss": math.nan}],
        [{"step": i, "loss": 1.0} for i in range(5000)],
        [{"step": 3, "evaluation": {"fit": 0.2}}],
    ):
        svg = ElementTree.fromstring(draw_training_curve(entries, "fit"))
        assert len(svg) == 2
    assert format_duration(59) == "0:59"
    assert format_duration(3723) == "1:02:03"

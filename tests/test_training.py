"""The loop does what it says, stops where it must and says why, and leaves a run that tells its story."""

import json
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from fixtures import tiny_recipe
from test_resume import CLIP, pairs
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.nn.tokens import Batch
from sensorium.recipes import RECIPES
from sensorium.recipes.recipe import EvaluationSpec, Recipe, ValidationResult
from sensorium.training import run as runs
from sensorium.training.loop import train
from sensorium.training.metrics_log import (
    MetricsLog,
    draw_training_curve,
    format_duration,
    read_metrics,
)
from sensorium.training.nonfinite import NonFiniteError
from sensorium.training.train_step import TrainStep, choose_precision


def lines(folder: Path, key: str) -> list[Any]:
    return [
        e[key]
        for e in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        if key in e
    ]


def reached(folder: Path) -> dict[str, Any]:
    return json.loads((max((folder / "state").glob("step-*")) / "state.json").read_text())[
        "reached"
    ]


def with_objective(objective: Callable[..., Any], **more: Any) -> Callable[..., Recipe]:
    """tiny_recipe.guess with parts of it replaced."""

    def guess(schema: Any, *, dim: int = 8, dropout: float = 0.0) -> Recipe:
        return replace(
            tiny_recipe.guess(schema, dim=dim, dropout=dropout), objective=objective, **more
        )

    return guess


def test_it_learns_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    losses, rates = lines(out, "loss"), lines(out, "lr")
    assert np.mean(losses[-7:]) < 0.5 * np.mean(losses[:7])
    assert len(losses) == 140
    assert max(rates) == pytest.approx(1e-2)
    assert rates[0] == pytest.approx(1e-2 / 7)
    assert rates[-1] < 1e-5
    found = lines(out, "evaluation")
    x = [[1.0, 0.5, 0.2]]
    assert len(found) == 4
    assert model.predict(x=x).shape == (1,)
    said = capsys.readouterr()
    assert "step 1/140" in said.err
    assert "samples/s" in said.err
    assert "left" in said.err
    assert f"fit {max(f['fit'] for f in found):.4g} at step" in said.out
    assert said.out.count("\n  sensorium ") == 3
    picture = PIL.Image.open(out / "curve.png")
    assert picture.size == (960, 420)
    assert len(picture.getcolors(100_000) or []) > 3
    card = (out / "README.md").read_text()
    for told in (
        "| train | 56 |",
        "| dim | 8 |",
        "Licence",
        "sn.load",
        model.fingerprint,
        "torch 2",
        "| fit |",
    ):
        assert told in card
    assert {p.name for p in out.iterdir()} == {
        "README.md",
        "config.json",
        "curve.png",
        "metrics.jsonl",
        "model.safetensors",
        "schema.json",
        "state",
    }


def test_clip_leaves_pictures_of_what_it_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    model = train(RECIPES["clip"], pairs(), out=tmp_path / "run", epochs=2, quiet=True, **CLIP)
    assert len(list((tmp_path / "run" / "samples").glob("step-*.png"))) == 2
    vectors = model.embed(text=["a red square", "a blue square"])
    assert vectors.shape[0] == 2
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert (tmp_path / "run" / "tokenizer.json").exists()
    assert model.config.recipe == "clip"


def test_keywords_are_checked_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(
        TypeError, match="unexpected keyword argument 'epoch'; did you mean 'epochs'"
    ):
        train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", epoch=3)
    assert not (tmp_path / "run").exists()
    for keyword, message in (
        ({"lr": -1.0}, "lr is -1.0; it must be at least 0"),
        ({"ema_decay": 1.5}, "ema_decay is 1.5.*most 1"),
        ({"precision": "fp8"}, "precision='fp8' is not one of auto, fp32, bf16"),
        ({"optimizer": "adamm"}, "optimizer='adamm' is not one of adamw"),
        ({"grad_accumulation_steps": 0}, "grad_accumulation_steps"),
    ):
        with pytest.raises(SensoriumError, match=message):
            train(
                tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", quiet=True, **keyword
            )
    train(
        tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", epochs=0.1, quiet=True
    )  # none of them has made it a run


def test_where_it_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        SensoriumError, match="cannot write to full/thesis.txt/run: Not a directory.*--out"
    ):
        train(tiny_recipe.guess, tiny_recipe.rows(), out="full/thesis.txt/run", quiet=True)


def test_without_training_rows_it_says_so(tmp_path: Path) -> None:
    data = tiny_recipe.rows()
    data.splits["train"] = data.splits["train"][:0]
    with pytest.raises(
        SensoriumError, match="tiny has no rows to train on: its splits are train, val"
    ):
        train(tiny_recipe.guess, data, out=tmp_path / "run", quiet=True)


def test_without_validation_the_last_weights_are_kept(tmp_path: Path) -> None:
    data = tiny_recipe.rows()
    del data.splits["val"]
    train(tiny_recipe.guess, data, out=tmp_path / "run", epochs=2, quiet=True)
    assert "no validation rows" in (tmp_path / "run" / "README.md").read_text()
    assert reached(tmp_path / "run")["best_step"] == 14


def test_the_callers_chance_is_left_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", epochs=1, quiet=True)
    assert torch.equal(before, torch.get_rng_state())


def test_the_seed_is_all_that_chance_depends_on(tmp_path: Path) -> None:
    prints = [
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
    assert prints[0] == prints[1] != prints[2]


def test_it_runs_beside_the_main_thread(tmp_path: Path) -> None:
    found: list[Any] = []
    thread = threading.Thread(
        target=lambda: found.append(
            train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", epochs=1, quiet=True)
        )
    )
    thread.start()
    thread.join()
    assert found[0].predict(x=[[0.0, 0.0, 0.0]]).shape == (1,)


def test_it_stops_when_nothing_gets_better(tmp_path: Path) -> None:
    figures = iter([0.1, 0.5, 0.4, 0.5, 0.3, 0.9])
    make = with_objective(
        tiny_recipe.objective,
        evaluation=EvaluationSpec(
            metric="fit",
            mode="max",
            validate=lambda model, prepared, rows: ValidationResult({"fit": next(figures)}),
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
    assert len(lines(tmp_path / "run", "evaluation")) == 5
    assert len(lines(tmp_path / "run", "loss")) == 35
    losses = iter([0.4, 0.2, 0.3, 0.1])
    make = with_objective(
        tiny_recipe.objective,
        evaluation=EvaluationSpec(
            metric="val_loss",
            mode="min",
            validate=lambda model, prepared, rows: ValidationResult({"val_loss": next(losses)}),
        ),
    )
    train(make, tiny_recipe.rows(), out=tmp_path / "loss", epochs=4, quiet=True)
    assert reached(tmp_path / "loss")["best"] == 0.1


class Cracked(nn.Module):
    """A layer that fails for one row."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where((x[:, :1] > 2.2), x.new_tensor(math.inf), x)


def cracked(schema: Any, *, dim: int = 8) -> Recipe:
    recipe = tiny_recipe.guess(schema, dim=dim, dropout=0.0)
    model = nn.Sequential(nn.Identity(), Cracked(), recipe.model)
    return replace(recipe, model=model)


def test_a_loss_that_is_no_number_stops_before_the_update(tmp_path: Path) -> None:
    data, out = tiny_recipe.rows(), tmp_path / "run"
    row = 11
    data.table.columns["a"][row] = 30.0
    with pytest.raises(NonFiniteError) as fault:
        train(
            cracked,
            data,
            out=out,
            batch_size=4,
            checkpoint_interval=1 / 14,
            eval_interval=0,
            quiet=True,
        )
    step = len(lines(out, "loss")) + 1
    assert str(fault.value).startswith(
        f"step {step}: the loss of model is nan; it begins in module 1, samples tiny_recipe.csv:{row + 2} (row {row}). "
        "The weights were not touched"
    )
    saved = sorted(p.name for p in (out / "state").iterdir())
    assert saved[-1:] == ([f"step-{step - 1:06d}"] if step > 1 else [])


def once(change: Callable[[nn.Module, Tensor], Tensor]) -> TrainStep:
    """A step whose loss is changed."""
    recipe = tiny_recipe.guess(tiny_recipe.rows().schema, dropout=0.0)
    return TrainStep(
        replace(
            recipe,
            objective=lambda model, batch: {
                "model": change(model, tiny_recipe.objective(model, batch)["model"])
            },
        ),
        10,
        "fp32",
    )


def batch(n: int = 6) -> Batch:
    rng = torch.Generator().manual_seed(0)
    return Batch(
        {name: torch.randn(n, generator=rng) for name in tiny_recipe.COLUMNS},
        row=torch.arange(100, 100 + n),
    )


def test_a_gradient_that_is_no_number_stops_before_the_update() -> None:
    step = once(lambda model, loss: loss + (0 * model.last.weight).abs().sqrt().sum())
    before = [p.detach().clone() for p in step.model.parameters()]
    with pytest.raises(
        NonFiniteError,
        match=r"the gradient of model is nan; it begins in the gradient of last.weight",
    ):
        step(batch(), 0)
    assert all(torch.equal(a, b) for a, b in zip(before, step.model.parameters(), strict=True))


def test_a_batch_that_is_no_number_is_named() -> None:
    given = batch()
    given["b"][2] = math.nan
    with pytest.raises(NonFiniteError, match="column b of the batch is not finite") as fault:
        once(lambda model, loss: loss)(given, 0)
    assert fault.value.rows == [102]


def test_parts_of_a_batch_add_up() -> None:
    """Without batch norm, whose figures are those of a part."""
    net = nn.Linear(3, 1)
    recipe = replace(
        tiny_recipe.guess(tiny_recipe.rows().schema),
        model=net,
        objective=lambda m, b: {
            "model": (m(tiny_recipe.inputs(b)).squeeze(1) - b["y"]).square().mean()
        },
    )
    whole, parts = (
        TrainStep(
            replace(recipe, training=replace(recipe.training, grad_accumulation_steps=n)),
            10,
            "fp32",
        )
        for n in (1, 4)
    )
    a = whole._backward(batch(6))
    wanted = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    b = parts._backward(batch(6))
    assert a["model"] == pytest.approx(b["model"], rel=1e-6)
    for x, y in zip(wanted, net.parameters(), strict=True):
        torch.testing.assert_close(x, y.grad)
    assert [len(p) for p in batch(6).split(4)] == [2, 2, 1, 1]
    assert len(batch(2).split(5)) == 2
    assert Batch.concat(batch(6).split(4)).row.equal(batch(6).row)


def test_an_objective_may_see_all_parts_at_once() -> None:
    seen: list[int] = []

    class Together:
        def __call__(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
            raise AssertionError("the parts belong together")

        def accumulate(self, model: nn.Module, batches: Any) -> dict[str, Tensor]:
            seen.extend(len(b) for b in batches)
            loss = torch.stack([tiny_recipe.objective(model, b)["model"] for b in batches]).mean()
            loss.backward()
            return {"model": loss.detach()}

    recipe = tiny_recipe.guess(tiny_recipe.rows().schema)
    step = TrainStep(
        replace(
            recipe,
            objective=Together(),
            training=replace(recipe.training, grad_accumulation_steps=3),
        ),
        10,
        "fp32",
    )
    assert step(batch(6), 0)["loss"] > 0
    assert seen == [2, 2, 2]


def test_two_players_each_learn_from_their_own_loss() -> None:
    """As in an adversarial pair: one forward, two losses, and neither moves the other's weights."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maker, self.judge = nn.Linear(3, 3), nn.Linear(3, 1)

    class Duel:
        players = ("maker", "judge")

        def __call__(self, model: Any, batch: Any) -> dict[str, Tensor]:
            score = model.judge(model.maker(tiny_recipe.inputs(batch))).mean()
            return {"maker": -score, "judge": score}

    recipe = replace(tiny_recipe.guess(tiny_recipe.rows().schema), model=Pair(), objective=Duel())
    step = TrainStep(
        replace(recipe, training=replace(recipe.training, max_grad_norm=0.0, weight_decay=0.0)),
        10,
        "fp32",
    )
    wanted = torch.autograd.grad(
        -Duel()(step.model, batch())["judge"], list(step.model.maker.parameters())
    )
    figures = step(batch(), 0)
    for p, g in zip(step.model.maker.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, g)
    assert figures["loss_maker"] == pytest.approx(-figures["loss_judge"])
    assert "grad_norm_judge" in figures


def test_gradients_are_cut_to_length() -> None:
    step = once(lambda model, loss: 1000 * loss)
    figures = step(batch(), 0)
    norm = torch.cat(
        [p.grad.flatten() for p in step.model.parameters() if p.grad is not None]
    ).norm()
    assert figures["grad_norm"] > 100
    assert norm.item() == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("faster", ["fp32", "bf16"])
def test_the_measured_choice_is_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faster: str
) -> None:
    """Whatever is chosen, the run is the one that asks for it by name: measuring disturbs nothing."""

    def measured(*given: Any) -> str:
        assert choose_precision(*given) in ("fp32", "bf16")
        return faster

    monkeypatch.setattr(runs, "measured_precision", measured)
    monkeypatch.setattr(runs, "WORTH_MEASURING", 1)
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


def test_a_log_is_cut_to_the_step_it_goes_on_from(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n{"step": 3, "lo'
    )
    assert [e["step"] for e in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    with MetricsLog(tmp_path, 9, 1, 4, quiet=True) as log:
        log.log_step(2, {"loss": 1.25, "lr": 0.1})
    assert lines(tmp_path, "loss") == [2.0, 1.25]


def test_a_curve_can_be_drawn_of_anything() -> None:
    for entries in (
        [],
        [{"step": 1, "loss": math.nan}],
        [{"step": i, "loss": 1.0} for i in range(5000)],
        [{"step": 3, "evaluation": {"fit": 0.2}}],
    ):
        assert draw_training_curve(entries, "fit").startswith(b"\x89PNG")
    assert format_duration(59) == "0:59"
    assert format_duration(3723) == "1:02:03"

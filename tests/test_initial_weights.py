"""Starting a run from the weights of another run: what fits is taken, what is new is named."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import tiny_recipe
from fixtures.colored_squares import TINY_CLIP, colored_squares
from fixtures.interruption import call_at_step, crash
from fixtures.squares import clip_folder as clip_folder
from fixtures.squares import data as data
from PIL import Image

from sensorium.cli import app
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.io.tensors import read_tensors
from sensorium.recipes import RECIPES
from sensorium.training.loop import train
from sensorium.training.metrics_log import read_metrics

NO_STEP: dict[str, Any] = {"lr": 0.0, "epochs": 1, "weight_decay": 0.0, "quiet": True}
TINY_FUSION: dict[str, Any] = {"target": "kind", "dim": 16, "layers": 1, "quiet": True}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return read_tensors(run / "model.safetensors")


def losses(run: Path) -> list[float]:
    return [e["loss"] for e in read_metrics(run / "metrics.jsonl") if "loss" in e]


def things(path: Path, classes: str, ships: str, words: str, n: int = 90) -> Dataset:
    """Return a table with a number, a category, a text and a class."""
    rng = random.Random(0)
    lines = ["age,ship,note,kind"]
    for i in range(n):
        note = " ".join(rng.choices(words.split(), k=4))
        lines.append(f"{rng.random():.3f},{rng.choice(ships)},{note},{classes[i % len(classes)]}")
    path.write_text("\n".join(lines), encoding="utf-8")
    return Dataset.open(path, types={"note": "text", "ship": "category", "kind": "category"})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    table = things(folder / "old.csv", "abc", "xyz", "red green blue fast slow")
    train(RECIPES["fusion"], table, out=folder / "run", epochs=2, **TINY_FUSION)
    return folder / "run"


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_same_recipe_and_data_start_from_all_weights(
    ema_decay: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a step that changes anything, the new run has the weights of the old one."""
    old, new = tmp_path / "old", tmp_path / "new"
    train(tiny_recipe.guess, tiny_recipe.rows(), out=old, epochs=3, quiet=True)
    keywords = {**NO_STEP, "quiet": False, "ema_decay": ema_decay, "init": old, "seed": 5}
    model = train(tiny_recipe.guess, tiny_recipe.rows(), out=new, **keywords)
    assert f"starting from the weights of {old}: all 12 tensors" in capsys.readouterr().err
    assert model.config.keywords["init"] == str(old)
    before, after = weights(old), weights(new)
    for name, value in before.items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(value, after[name]), name
    assert losses(new)[0] < losses(old)[0]


def test_keywords_of_the_model_are_those_of_the_run(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    train(tiny_recipe.guess, tiny_recipe.rows(), out=old, epochs=1, dim=12, quiet=True)
    keywords = {**NO_STEP, "ema_decay": 0.0}
    model = train(tiny_recipe.guess, tiny_recipe.rows(128, 1), out=new, init=str(old), **keywords)
    assert model.config.keywords["dim"] == 12
    assert model.config.keywords["lr"] == 0.0
    assert torch.equal(weights(old)["hidden1.weight"], weights(new)["hidden1.weight"])


def test_classes_and_words_are_matched_by_name(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Classes a, b, c become b, c, d, e, and ships x, y, z become w, y, z."""
    table = things(tmp_path / "new.csv", "bcde", "wyz", "gruen blue rapide slow")
    keywords = {**TINY_FUSION, **NO_STEP, "quiet": False, "init": source, "ema_decay": 0.0}
    new = train(RECIPES["fusion"], table, out=tmp_path / "new", **keywords)
    line = next(s for s in capsys.readouterr().err.splitlines() if s.startswith("starting from"))
    assert "heads.0.linear.weight (2 of 4 rows)" in line
    assert "tabular.embeddings.0.weight (1 of 4 rows)" in line
    before, after = weights(source), weights(tmp_path / "new")
    head_before, head_after = before["heads.0.linear.weight"], after["heads.0.linear.weight"]
    assert torch.equal(head_before[[1, 2]], head_after[[0, 1]])  # b and c
    ship_before, ship_after = (w["tabular.embeddings.0.weight"] for w in (before, after))
    assert torch.equal(ship_before[[1, 2, 3]], ship_after[[1, 2, 3]])  # y, z and unseen
    assert torch.equal(before["norm.weight"], after["norm.weight"])
    assert after["heads.0.prior"].shape == (4,)
    assert set(new.predict([{"age": 0.5, "note": "blue"}])["kind"].value) <= set("bcde")


def test_words_of_the_old_vocabulary_keep_their_vectors(source: Path, tmp_path: Path) -> None:
    table = things(tmp_path / "new.csv", "abc", "xyz", "green slow neuf")
    keywords = {**TINY_FUSION, **NO_STEP, "init": source, "ema_decay": 0.0}
    train(RECIPES["fusion"], table, out=tmp_path / "new", **keywords)
    before, after = weights(source), weights(tmp_path / "new")
    prefixes = [n.removesuffix("ngram_hashes") for n in after if n.endswith("ngram_hashes")]
    prefix = next(p for p in prefixes if f"{p}embedding.weight" in after)  # not of the linear model
    index = {int(h): i for i, h in enumerate(before[f"{prefix}ngram_hashes"]) if h < 2**63 - 1}
    shared = 0
    for i, ngram in enumerate(after[f"{prefix}ngram_hashes"].tolist()):
        if ngram in index:
            shared += 1
            old = before[f"{prefix}embedding.weight"][index[ngram]]
            assert torch.equal(after[f"{prefix}embedding.weight"][i], old)
    assert 10 < shared < len(index)


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    """Towers are named after their columns; the images keep the size that they had in the run."""
    squares = colored_squares()
    train(RECIPES["clip"], squares, out=tmp_path / "old", epochs=1, quiet=True, **TINY_CLIP)
    folder = tmp_path / "photos"
    folder.mkdir()
    lines = ["photo,title"]
    for i in range(40):
        Image.new("RGB", (90, 70), (6 * i, 250 - 6 * i, 90)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,a square of colour {i}")
    (folder / "table.csv").write_text("\n".join(lines), encoding="utf-8")
    photos = Dataset.open(folder / "table.csv", types={"title": "text"})
    new = train(RECIPES["clip"], photos, out=tmp_path / "new", init=tmp_path / "old", **NO_STEP)
    image, old_image = new.schema["photo"], squares.schema["image"]
    assert vars(image)["size"] == vars(old_image)["size"]
    before, after = weights(tmp_path / "old"), weights(tmp_path / "new")
    moved = [n for n in before if n.startswith("image.") and "running" not in n]
    moved = [n for n in moved if not n.endswith("num_batches_tracked")]
    assert moved
    for name in moved:
        assert torch.equal(before[name], after[f"photo.{name.removeprefix('image.')}"]), name


def test_what_cannot_fit_is_refused(source: Path, tmp_path: Path) -> None:
    start: dict[str, Any] = {"init": source, "out": tmp_path / "new", "quiet": True}
    table = things(tmp_path / "new.csv", "abc", "xyz", "green slow")
    with pytest.raises(SensoriumError, match=r"trained with recipe fusion, not .*guess"):
        train(tiny_recipe.guess, tiny_recipe.rows(), **start)
    with pytest.raises(SensoriumError, match=r"reads the columns age.*the new one ship"):
        train(RECIPES["fusion"], table, columns=["ship", "note"], target="kind", **start)
    with pytest.raises(SensoriumError, match=r"no weights fit this model: .* is here \[.*README"):
        train(RECIPES["fusion"], table, target="kind", dim=24, layers=1, **start)
    with pytest.raises(SensoriumError, match="not a Sensorium run"):
        train(RECIPES["fusion"], table, target="kind", **{**start, "init": tmp_path})


def test_killed_before_its_first_checkpoint_it_still_starts_from_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, whole, cut = (tmp_path / name for name in ("old", "whole", "cut"))
    train(tiny_recipe.guess, tiny_recipe.rows(), out=old, epochs=2, quiet=True)
    keywords: dict[str, Any] = {"init": str(old), "epochs": 1, "quiet": True}
    train(tiny_recipe.guess, tiny_recipe.rows(), out=whole, **keywords)
    call_at_step(monkeypatch, 3, crash)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe.guess, tiny_recipe.rows(), out=cut, **keywords)
    train(tiny_recipe.guess, tiny_recipe.rows(), out=cut, resume=True, **keywords)
    assert losses(cut) == losses(whole)


def test_command_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    things(tmp_path / "new.csv", "bcd", "xyz", "green slow")
    command = ["train", "fusion", str(tmp_path / "new.csv"), "--init", str(source)]
    types = ["--type", "note=text", "--type", "ship=category", "--type", "kind=category"]
    out = ["--out", str(tmp_path / "new"), "--epochs", "1", "--dim", "16", "--layers", "1"]
    assert app.run([*command, *types, *out]) == 0
    assert f"starting from the weights of {source}: " in capsys.readouterr().err


@pytest.mark.parametrize(("first", "then"), [("all", "lora"), ("lora", "all"), ("lora", "lora")])
def test_low_rank_updates_are_merged_where_the_new_run_has_none(
    first: str, then: str, clip_folder: Path, data: Dataset, tmp_path: Path
) -> None:
    """The new run embeds as the old one, whichever weights each of them trains."""
    old = train(
        RECIPES["finetune"],
        data,
        out=tmp_path / "old",
        weights=str(clip_folder),
        train=first,
        epochs=2,
        batch_size=8,
        lr=0.01,
        quiet=True,
    )
    out = tmp_path / "new"
    new = train(RECIPES["finetune"], data, out=out, init=old.folder, train=then, **NO_STEP)
    assert new.config.keywords["weights"]["source"] == str(clip_folder)
    text = ["a red square", "blue"]
    assert torch.allclose(
        torch.as_tensor(old.embed(text=text)), torch.as_tensor(new.embed(text=text)), atol=1e-5
    )


def test_new_rows_need_a_run_to_resume(tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match=r"Add --resume"):
        train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", new_rows=True)

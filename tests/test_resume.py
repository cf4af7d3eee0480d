"""A run that was stopped, or killed at any instant, goes on as if nothing had happened: equal to the last bit."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import tiny_recipe
from safetensors.torch import load_file

from sensorium.data.dataset import Dataset
from sensorium.data.schema import Column, Role, Schema
from sensorium.data.tables import Table
from sensorium.errors import SensoriumError
from sensorium.io.tensors import file_sha256
from sensorium.modalities.image import Image
from sensorium.modalities.text import Text
from sensorium.recipes import RECIPES
from sensorium.training.loop import Interrupted, train
from sensorium.training.metrics_log import MetricsLog

HERE = Path(__file__).parent
SHORT: dict[str, Any] = {
    "epochs": 2,
    "checkpoint_interval": 3 / 7,
    "eval_interval": 4 / 7,
    "quiet": True,
}


def nursery(folder: Path, kills: int, mode: str) -> tuple[list[dict[str, Any]], list[str]]:
    """(the kills, the end of each chain of lives)."""
    alone = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, HERE / "fixtures" / "kill_harness.py", folder, str(kills), mode],
        capture_output=True,
        text=True,
        env={**os.environ, **alone},
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return [e for e in found if "by" in e], [e["end"] for e in found if "end" in e]


def table(kills: list[dict[str, Any]]) -> str:
    """Where each kill landed."""
    rows = Counter((e["where"], e["by"], " ".join(e["what"].split(".")[0].split())) for e in kills)
    return "\n".join(
        ["", f"{'in':<11} {'by':<8} {'kills':>5}  at"]
        + [f"{where:<11} {by:<8} {n:>5}  {what}" for (where, by, what), n in sorted(rows.items())]
    )


def test_killed_at_any_instant_it_ends_the_same(tmp_path: Path) -> None:
    kills, ends = nursery(tmp_path, 48, "ours")
    print(table(kills))
    in_saves = [e for e in kills if e["where"] in ("save", "best")]
    assert len(kills) >= 40
    assert len(in_saves) >= 0.3 * len(kills)
    assert not [e for e in kills if e["fault"]], "what was on the disk was whole after each kill"
    assert set(ends) == {"same"}


def test_a_writer_in_place_is_caught(tmp_path: Path) -> None:
    """The control: were the writer not atomic, the test above would see it."""
    kills, ends = nursery(tmp_path, 8, "naive")
    assert "save" in {e["where"] for e in kills}
    assert set(ends) != {"same"}


def pairs(n: int = 40) -> Dataset:
    """Coloured squares with their colours' names."""
    rng = np.random.default_rng(0)
    colours = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200), "grey": (99, 99, 99)}
    names = [list(colours)[i % 4] for i in range(n)]
    pictures = np.stack(
        [np.clip(rng.integers(-40, 40, (16, 16, 3)) + colours[c], 0, 255) for c in names]
    )
    columns = {
        "image": pictures.astype(np.uint8),
        "caption": [[f"a {c} square {i}", f"{c} {i}"] for i, c in enumerate(names)],
        "split": ["val" if i % 5 == 0 else "train" for i in range(n)],
    }
    kinds = {"image": Image(size=16), "caption": Text(length=8, vocab_size=300)}
    schema = Schema(
        {name: Column(name, kind) for name, kind in kinds.items()},
        {"split": Role("split", "split")},
    )
    return Dataset(Table(columns, [f"square {i}" for i in range(n)]), schema, "squares")


CLIP: dict[str, Any] = {
    "dim": 32,
    "image_layers": 2,
    "text_layers": 1,
    "patch_size": 8,
    "batch_size": 8,
    "dropout": 0.1,
    "ema_decay": 0.9,
}
KINDS: list[Any] = [
    (tiny_recipe.guess, tiny_recipe.rows, {}),
    (
        tiny_recipe.guess,
        tiny_recipe.rows,
        {"ema_decay": 0.0, "grad_accumulation_steps": 2, "optimizer": "muon"},
    ),
    (tiny_recipe.guess, tiny_recipe.rows, {"optimizer": "lion", "precision": "bf16"}),
    (tiny_recipe.guess, tiny_recipe.rows, {"optimizer": "sgd"}),
    pytest.param(
        RECIPES["clip"],
        pairs,
        {**CLIP, "epochs": 2, "checkpoint_interval": 0.5, "eval_interval": 1},
        id="threads",
    ),
    (RECIPES["clip"], pairs, {**CLIP, "epochs": 2, "grad_accumulation_steps": 2, "loss": "siglip"}),
]


def ended(folder: Path) -> dict[str, Any]:
    last = max((folder / "state").glob("step-*"))
    files = [*last.iterdir(), folder / "model.safetensors", folder / "metrics.jsonl"]
    return {str(p.relative_to(folder)): file_sha256(p) for p in files}


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, do: Callable[[], object]) -> None:
    """Something happens while the run is at that step, once."""
    log = MetricsLog.log_step

    def then(self: MetricsLog, now: int, figures: Any) -> None:
        if now == step:
            monkeypatch.setattr(MetricsLog, "step", log)
            do()
        log(self, now, figures)

    monkeypatch.setattr(MetricsLog, "step", then)


def ask(number: int = signal.SIGTERM) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def killed() -> None:
    """As if the process were no more: nothing is saved."""
    raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """So that a busy machine does not make threads wait for each other; one case keeps them all."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if "threads" in request.node.name else 1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("make, data, keywords", KINDS)
def test_stopped_and_resumed_it_ends_the_same(
    make: Callable[..., Any],
    data: Callable[[], Dataset],
    keywords: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    keywords = {**SHORT, **keywords}
    whole = train(make, data(), out=tmp_path / "whole", **keywords)
    before = signal.getsignal(signal.SIGTERM)
    at_step(monkeypatch, 5, ask())
    with pytest.raises(
        Interrupted, match=r"stopped after step 5; all is saved in .*--resume"
    ) as stopped:
        train(make, data(), out=tmp_path / "cut", **keywords)
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    torch.manual_seed(99)  # chance of the new process is another
    again = train(make, data(), out=tmp_path / "cut", resume=True, quiet=True)
    assert ended(tmp_path / "cut") == ended(tmp_path / "whole")
    assert again.fingerprint == whole.fingerprint
    steps = [e["step"] for e in metrics(tmp_path / "cut") if "loss" in e]
    assert steps == list(range(1, len(steps) + 1))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Also where a shell began the tests in the background, and so has them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_asks_and_a_second_one_interrupts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, 2, ask(signal.SIGINT))
    with pytest.raises(Interrupted) as stopped:
        train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", **SHORT)
    assert stopped.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    at_step(monkeypatch, 3, lambda: (ask(signal.SIGINT)(), ask(signal.SIGINT)()))
    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", resume=True, quiet=True)


def test_a_run_that_is_over_says_the_same_again(tmp_path: Path) -> None:
    first = train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", **SHORT)
    before = ended(tmp_path / "run")
    again = train(
        tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", resume=True, quiet=True
    )
    assert again.fingerprint == first.fingerprint
    assert ended(tmp_path / "run") == before


def test_a_damaged_save_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", **SHORT)
    before = ended(tmp_path / "run")
    newest = max((tmp_path / "run" / "state").glob("step-*"))
    (newest / "optimizer.safetensors").write_bytes(b"torn")
    train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", resume=True)
    assert (
        f"{newest} is damaged (optimizer.safetensors is not what was written)"
        in capsys.readouterr().out
    )
    assert ended(tmp_path / "run") == before
    for path in (tmp_path / "run" / "state").glob("step-*"):
        (path / "manifest.json").unlink()
    with pytest.raises(SensoriumError, match="nothing whole is left"):
        train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", resume=True, quiet=True)


def test_a_full_disk_keeps_the_last_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "whole", **SHORT)
    write, saves = Path.write_bytes, 0

    def full(path: Path, content: bytes) -> int:
        nonlocal saves
        saves += "state.json" in path.name
        if saves == 3:
            write(path, content[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(
        SensoriumError, match="could not write .*state.json: No space left on device"
    ):
        train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", **SHORT)
    monkeypatch.undo()
    assert sorted(p.name for p in (tmp_path / "run" / "state").glob("step-??????")) == [
        "step-000003",
        "step-000006",
    ]
    again = train(
        tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", resume=True, quiet=True
    )
    assert again.fingerprint == whole.fingerprint
    assert ended(tmp_path / "run") == ended(tmp_path / "whole")


def test_what_would_make_it_another_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    at_step(monkeypatch, 2, ask())
    with pytest.raises(Interrupted):
        train(tiny_recipe.guess, tiny_recipe.rows(), out=run, **SHORT)
    again: dict[str, Any] = {"out": run, "resume": True, "quiet": True}
    with pytest.raises(SensoriumError, match=r"begun with lr=0.01, not 0.5.*leave lr out"):
        train(tiny_recipe.guess, tiny_recipe.rows(), lr=0.5, **again)
    with pytest.raises(SensoriumError, match="the data are not those"):
        train(tiny_recipe.guess, tiny_recipe.rows(72), **again)
    with pytest.raises(SensoriumError, match="begun with recipe .*guess, not clip"):
        train(RECIPES["clip"], tiny_recipe.rows(), **again)
    with pytest.raises(SensoriumError, match="holds a run: go on with it by resume=True"):
        train(tiny_recipe.guess, tiny_recipe.rows(), out=run, quiet=True)
    with pytest.raises(SensoriumError, match="Name its folder"):
        train(tiny_recipe.guess, tiny_recipe.rows(), resume=True, quiet=True)
    with pytest.raises(SensoriumError, match="does not exist"):
        train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "rum", resume=True, quiet=True)
    assert (
        train(tiny_recipe.guess, tiny_recipe.rows(), epochs=2, **again).config.keywords["epochs"]
        == 2
    )


def test_two_at_once_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def second() -> None:
        with pytest.raises(SensoriumError, match="another process is training"):
            train(
                tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", resume=True, quiet=True
            )

    at_step(monkeypatch, 2, second)
    train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", **SHORT)


def test_weights_are_those_of_the_best_step(tmp_path: Path) -> None:
    train(
        tiny_recipe.guess,
        tiny_recipe.rows(),
        out=tmp_path / "run",
        **{**SHORT, "ema_decay": 0.0, "eval_interval": 1, "checkpoint_interval": 1},
    )
    found = [e for e in metrics(tmp_path / "run") if "evaluation" in e]
    best = max(found, key=lambda e: e["evaluation"]["fit"])["step"]
    kept = load_file(tmp_path / "run" / "model.safetensors")
    then = load_file(tmp_path / "run" / "state" / f"step-{best:06d}" / "model.safetensors")
    assert all(torch.equal(kept[name], then[name]) for name in then)

"""Tests of resuming: an interrupted or killed run ends as if nothing had happened, bit for bit."""

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

import pytest
import torch
from fixtures import tiny_recipe
from fixtures.colored_squares import TINY_CLIP, colored_squares
from fixtures.interruption import call_at_step, run_hashes, send_signal
from safetensors.torch import load_file

from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.recipes import RECIPES
from sensorium.training.interruption import Interrupted
from sensorium.training.loop import train
from sensorium.training.metrics_log import read_metrics

KILL_HARNESS = Path(__file__).parent / "fixtures" / "kill_harness.py"
SHORT: dict[str, Any] = {
    "epochs": 2,
    "checkpoint_interval": 3 / 7,
    "eval_interval": 4 / 7,
    "quiet": True,
}
CASES: list[Any] = [
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
        colored_squares,
        {**TINY_CLIP, "epochs": 2, "checkpoint_interval": 0.5, "eval_interval": 1},
        id="threads",
    ),
    (
        RECIPES["clip"],
        colored_squares,
        {**TINY_CLIP, "epochs": 2, "grad_accumulation_steps": 2, "loss": "siglip"},
    ),
]


def run_kill_harness(folder: Path, kills: int, mode: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the kills, and how each chain of killed runs ended."""
    single_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    python_path = os.pathsep.join([str(KILL_HARNESS.parents[1]), os.environ.get("PYTHONPATH", "")])
    completed = subprocess.run(
        [sys.executable, KILL_HARNESS, folder, str(kills), mode],
        capture_output=True,
        text=True,
        env={**os.environ, **single_thread, "PYTHONPATH": python_path},
        timeout=900,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    entries = [json.loads(line) for line in completed.stdout.splitlines()]
    return [e for e in entries if "by" in e], [e["end"] for e in entries if "end" in e]


def format_kills(kills: list[dict[str, Any]]) -> str:
    """Return a table of where the kills landed."""
    counts = Counter(
        (e["phase"], e["by"], " ".join(e["event"].split(".")[0].split())) for e in kills
    )
    lines = [f"{'phase':<11} {'by':<8} {'kills':>5}  at"]
    for (phase, by, event), n in sorted(counts.items()):
        lines.append(f"{phase:<11} {by:<8} {n:>5}  {event}")
    return "\n".join(["", *lines])


def test_run_killed_at_any_time_ends_the_same(tmp_path: Path) -> None:
    kills, ends = run_kill_harness(tmp_path, 48, "atomic")
    print(format_kills(kills))
    in_saves = [e for e in kills if e["phase"] in ("save", "best")]
    assert len(kills) >= 40
    assert len(in_saves) >= 0.3 * len(kills)
    assert not [e for e in kills if e["damage"]], "files are intact after each kill"
    assert set(ends) == {"same"}


def test_harness_detects_a_writer_that_is_not_atomic(tmp_path: Path) -> None:
    """The control of the test above."""
    kills, ends = run_kill_harness(tmp_path, 8, "naive")
    assert "save" in {e["phase"] for e in kills}
    assert set(ends) != {"same"}


@pytest.fixture(autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Use one thread, so that a busy machine does not slow the tests, except in one case."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if "threads" in request.node.name else 1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("recipe_fn", "data", "keywords"), CASES)
def test_interrupted_and_resumed_run_ends_the_same(
    recipe_fn: Callable[..., Any],
    data: Callable[[], Dataset],
    keywords: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    keywords = {**SHORT, **keywords}
    whole = train(recipe_fn, data(), out=tmp_path / "whole", **keywords)
    before = signal.getsignal(signal.SIGTERM)
    call_at_step(monkeypatch, 5, send_signal())
    with pytest.raises(
        Interrupted, match=r"Interrupted after step 5. Progress is saved in .*--resume"
    ) as interrupted:
        train(recipe_fn, data(), out=tmp_path / "cut", **keywords)
    assert interrupted.value.exit_code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    torch.manual_seed(99)  # a new process has another random state
    again = train(recipe_fn, data(), out=tmp_path / "cut", resume=True, quiet=True)
    assert run_hashes(tmp_path / "cut") == run_hashes(tmp_path / "whole")
    assert again.fingerprint == whole.fingerprint
    steps = [e["step"] for e in read_metrics(tmp_path / "cut" / "metrics.jsonl") if "loss" in e]
    assert steps == list(range(1, len(steps) + 1))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Handle Ctrl-C even if a shell started the tests in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_first_ctrl_c_saves_and_a_second_one_interrupts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_at_step(monkeypatch, 2, send_signal(signal.SIGINT))
    with pytest.raises(Interrupted) as interrupted:
        train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", **SHORT)
    assert interrupted.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    call_at_step(
        monkeypatch, 3, lambda: (send_signal(signal.SIGINT)(), send_signal(signal.SIGINT)())
    )
    with pytest.raises(KeyboardInterrupt):
        train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", resume=True, quiet=True)


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    first = train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", **SHORT)
    before = run_hashes(tmp_path / "run")
    again = train(
        tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", resume=True, quiet=True
    )
    assert again.fingerprint == first.fingerprint
    assert run_hashes(tmp_path / "run") == before


def test_damaged_checkpoint_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", **SHORT)
    before = run_hashes(tmp_path / "run")
    newest = max((tmp_path / "run" / "state").glob("step-*"))
    (newest / "optimizer.safetensors").write_bytes(b"torn")
    train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", resume=True)
    assert (
        f"{newest} is damaged: optimizer.safetensors does not match its checksum"
        in capsys.readouterr().out
    )
    assert run_hashes(tmp_path / "run") == before
    for path in (tmp_path / "run" / "state").glob("step-*"):
        (path / "manifest.json").unlink()
    with pytest.raises(SensoriumError, match="No intact checkpoint is left"):
        train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", resume=True, quiet=True)


def test_full_disk_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "whole", **SHORT)
    write, saves = Path.write_bytes, 0

    def write_or_fail(path: Path, content: bytes) -> int:
        nonlocal saves
        saves += "state.json" in path.name
        if saves == 3:
            write(path, content[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_or_fail)
    with pytest.raises(
        SensoriumError, match=r"state.json could not be written: No space left on device"
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
    assert run_hashes(tmp_path / "run") == run_hashes(tmp_path / "whole")


def test_resuming_with_other_settings_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    call_at_step(monkeypatch, 2, send_signal())
    with pytest.raises(Interrupted):
        train(tiny_recipe.guess, tiny_recipe.rows(), out=run, **SHORT)
    again: dict[str, Any] = {"out": run, "resume": True, "quiet": True}
    with pytest.raises(SensoriumError, match=r"trained with --lr 0.01, not 0.5.*leave out --lr"):
        train(tiny_recipe.guess, tiny_recipe.rows(), lr=0.5, **again)
    with pytest.raises(SensoriumError, match="differs from the data that"):
        train(tiny_recipe.guess, tiny_recipe.rows(72), **again)
    with pytest.raises(SensoriumError, match=r"trained with recipe .*guess, not clip"):
        train(RECIPES["clip"], tiny_recipe.rows(), **again)
    with pytest.raises(SensoriumError, match=r"already holds a run. Resume it with --resume"):
        train(tiny_recipe.guess, tiny_recipe.rows(), out=run, quiet=True)
    with pytest.raises(SensoriumError, match="Name the run to resume with --out"):
        train(tiny_recipe.guess, tiny_recipe.rows(), resume=True, quiet=True)
    with pytest.raises(SensoriumError, match="does not exist"):
        train(
            tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "missing", resume=True, quiet=True
        )
    assert (
        train(tiny_recipe.guess, tiny_recipe.rows(), epochs=2, **again).config.keywords["epochs"]
        == 2
    )


def test_second_process_in_a_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_again() -> None:
        with pytest.raises(SensoriumError, match="in use by another process"):
            train(
                tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", resume=True, quiet=True
            )

    call_at_step(monkeypatch, 2, train_again)
    train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", **SHORT)


def test_saved_weights_are_those_of_the_best_step(tmp_path: Path) -> None:
    train(
        tiny_recipe.guess,
        tiny_recipe.rows(),
        out=tmp_path / "run",
        **{**SHORT, "ema_decay": 0.0, "eval_interval": 1, "checkpoint_interval": 1},
    )
    entries = read_metrics(tmp_path / "run" / "metrics.jsonl")
    evaluations = [e for e in entries if "evaluation" in e]
    best = max(evaluations, key=lambda e: e["evaluation"]["fit"])["step"]
    saved = load_file(tmp_path / "run" / "model.safetensors")
    expected = load_file(tmp_path / "run" / "state" / f"step-{best:06d}" / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in expected.items())

"""Signals: a closed terminal saves as SIGTERM does, and repeated Ctrl-C is one request."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures import tiny_recipe
from fixtures.interruption import call_at_step

import sensorium.io.terminal as io_signals
from sensorium.errors import SensoriumError
from sensorium.recipes.from_run import require_finished
from sensorium.training.interruption import Interrupted, handle_signals
from sensorium.training.loop import train

SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 8, "quiet": True}


@pytest.fixture
def command_line() -> Iterator[None]:
    """Handle Ctrl-C as the command line does."""
    before = signal.signal(signal.SIGINT, io_signals.raise_interrupt)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("command_line")
@pytest.mark.parametrize(
    ("signals", "exit_code"),
    [([signal.SIGHUP], 129), ([signal.SIGINT] * 5, 130)],
)
def test_signals_save_once_and_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals: list[int], exit_code: int
) -> None:
    def send() -> None:
        for number in signals:
            os.kill(os.getpid(), number)
            time.sleep(0.01)

    call_at_step(monkeypatch, 2, send)
    with pytest.raises(Interrupted, match="Progress is saved") as error:
        train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", **SETTINGS)
    assert error.value.exit_code == exit_code
    assert list((tmp_path / "run" / "state").glob("step-*"))
    with pytest.raises(SensoriumError, match="is an unfinished run"):
        require_finished(tmp_path / "run")
    monkeypatch.undo()
    train(tiny_recipe.guess, tiny_recipe.rows(), out=tmp_path / "run", resume=True, **SETTINGS)
    require_finished(tmp_path / "run")


@pytest.mark.usefixtures("command_line")
def test_later_ctrl_c_stops_a_step_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io_signals, "QUICK_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt), handle_signals() as request:  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal_number == signal.SIGINT
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)


def test_ignored_signals_stay_ignored() -> None:
    """As `nohup` ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handle_signals() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
        assert not request.signal_number
    finally:
        signal.signal(signal.SIGHUP, before)

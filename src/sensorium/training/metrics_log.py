"""The log of a run: a progress bar or lines, metrics.jsonl, and the training curve as SVG."""

import errno
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sensorium.evaluation.chart import LineSeries, line_chart, stack_charts
from sensorium.io import atomic
from sensorium.io.terminal import SafeConsole

METRICS_FILE = "metrics.jsonl"
CURVE_FILE = "curve.svg"
LINE_INTERVAL_SECONDS = 10.0  # where no progress bar can be shown
BAR_INTERVAL_SECONDS = 1.0
MAX_CURVE_POINTS = 400  # of the training curve; more are averaged
MAX_POINTS_WITH_DOTS = 100
Point = tuple[float, float]


class MetricsLog:
    """The log of a run from a step on.

    Entries of later steps, left by a process that was killed, are removed.

    Args:
        folder: the run folder.
        total_steps: optimizer steps of the whole run.
        start_step: steps already taken.
        batch_size: rows per step.
        quiet: show nothing.

    Attributes:
        entries: all entries of metrics.jsonl.
    """

    def __init__(
        self, folder: Path, total_steps: int, start_step: int, batch_size: int, quiet: bool = False
    ):
        self.path = folder / METRICS_FILE
        self.total_steps = total_steps
        self.batch_size = batch_size
        self.entries = read_metrics(self.path, start_step)
        lines = [json.dumps(entry) + "\n" for entry in self.entries]
        atomic.write_file(self.path, "".join(lines).encode())
        self._file = self.path.open("ab", buffering=0)  # a full disk is noticed at once
        self._console = SafeConsole(stderr=True, quiet=quiet)
        self._progress_bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )
        self._progress_task = self._progress_bar.add_task(
            "training", total=total_steps, completed=start_step, metrics=""
        )
        self._start_step = start_step
        self._start_time = time.monotonic()
        self._last_line_step = start_step
        self._last_line_time = self._start_time

    def __enter__(self) -> "MetricsLog":
        self._progress_bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress_bar.stop()
        self._file.close()

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step, and show them from time to time."""
        self._append({"step": step, **metrics})
        now = time.monotonic()
        elapsed = now - self._last_line_time
        samples = (step - self._last_line_step) * self.batch_size
        speed = f"{samples / max(elapsed, 1e-9):,.0f} samples/s"
        line = f"loss {metrics['loss']:.4f}  lr {metrics['lr']:.2g}"
        self._progress_bar.update(self._progress_task, completed=step, metrics=f"{line}  {speed}")
        has_bar = not self._progress_bar.disable
        interval = BAR_INTERVAL_SECONDS if has_bar else LINE_INTERVAL_SECONDS
        if elapsed < interval and step != self._start_step + 1:
            return
        if not has_bar:
            steps_done = step - self._start_step
            left = (now - self._start_time) / steps_done * (self.total_steps - step)
            self.log(
                f"step {step}/{self.total_steps}  {line}  {speed}  {format_duration(left)} left"
            )
        self._last_line_time = now
        self._last_line_step = step

    def log_evaluation(self, step: int, metrics: Mapping[str, float], metric: str) -> None:
        """Record the validation metrics, show the main one, and redraw the training curve.

        Args:
            step: steps taken.
            metrics: all metrics; empty without validation rows.
            metric: name of the main metric.
        """
        self._append({"step": step, "evaluation": dict(metrics)})
        summary = "no validation rows"
        if metrics:
            summary = f"{metric} {metrics[metric]:.4g} on the validation split"
        self.log(f"step {step}/{self.total_steps}  {summary}")
        curve = draw_training_curve(self.entries, metric)
        atomic.write_file(self.path.with_name(CURVE_FILE), curve.encode())

    def log(self, message: str) -> None:
        """Print one line to stderr."""
        self._console.print(message, soft_wrap=True)

    def sync(self) -> None:
        """Flush what was recorded to the disk."""
        atomic.full_fsync(self._file.fileno())

    def _append(self, entry: dict[str, Any]) -> None:
        """Write one entry to metrics.jsonl."""
        self.entries.append(entry)
        line = (json.dumps(entry) + "\n").encode()
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))


def read_metrics(path: Path, max_step: int | None = None) -> list[dict[str, Any]]:
    """Read the entries of a metrics.jsonl, up to the first incomplete line.

    Args:
        path: the file; it may be missing.
        max_step: leave out entries of later steps.
    """
    if not path.exists():
        return []
    entries: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if max_step is None or entry["step"] <= max_step:
            entries.append(entry)
    return entries


def draw_training_curve(entries: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Draw the loss of each step, and below it the validation metric.

    Args:
        entries: entries of metrics.jsonl.
        metric: name of the validation metric.

    Returns:
        An SVG document.
    """
    losses: list[Point] = []
    values: list[Point] = []
    for entry in entries:
        if "evaluation" not in entry:
            losses.append((entry["step"], entry["loss"]))
        elif metric in entry["evaluation"]:
            values.append((entry["step"], entry["evaluation"][metric]))
    last_step = max([1, *(step for step, _ in losses + values)])
    return stack_charts(
        [
            _draw_curve(losses, "training loss", "loss", last_step),
            _draw_curve(values, f"validation {metric}", metric, last_step),
        ]
    )


def format_duration(seconds: float) -> str:
    """Return a duration as 1:02:03, or 2:03 below an hour."""
    minutes, seconds_left = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{seconds_left:02}"
    return f"{minutes // 60}:{minutes % 60:02}:{seconds_left:02}"


def _draw_curve(points: Sequence[Point], title: str, label: str, max_step: float) -> str:
    """Draw one curve, with dots where there are few points."""
    points = _downsample(points, MAX_CURVE_POINTS)
    radii = [2.0] * len(points) if len(points) <= MAX_POINTS_WITH_DOTS else []
    series = LineSeries(label, points, radii)
    return line_chart([series], title, "step", label, x_range=(0, max_step))


def _downsample(points: Sequence[Point], max_points: int) -> list[Point]:
    """Return at most `max_points` points: the means of equal intervals."""
    n = math.ceil(len(points) / max_points) or 1
    intervals = [points[i : i + n] for i in range(0, len(points), n)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in intervals]

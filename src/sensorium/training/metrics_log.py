"""How a run tells of itself: a bar or a line now and then, metrics.jsonl, and the curve drawn from it."""

import errno
import io
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sensorium.io import atomic

LOG_INTERVAL_SECONDS = 10.0  # seconds between lines where no bar can be drawn
Point = tuple[float, float]


class MetricsLog:
    """The record of one run from some step on. Entries of later steps, left by a process that died, are cut off."""

    def __init__(
        self, folder: Path, total_steps: int, start_step: int, batch_size: int, quiet: bool = False
    ):
        self.path, self.total_steps, self.batch_size, self.quiet = (
            folder / "metrics.jsonl",
            total_steps,
            batch_size,
            quiet,
        )
        self.entries = read_metrics(self.path, start_step)
        atomic.write_file(self.path, "".join(json.dumps(e) + "\n" for e in self.entries).encode())
        self._file = open(
            self.path, "ab", buffering=0
        )  # nothing waits in here that a full disk could hold up
        self._console = Console(stderr=True, quiet=quiet)
        self._progress_bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )
        self._progress_task = self._progress_bar.add_task(
            "training", total=total_steps, completed=start_step, figures=""
        )
        self._start_time = self._last_log_time = time.monotonic()
        self._last_logged_step = start_step
        self._start_step = start_step

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
        """Record one update and show it."""
        self._append({"step": step, **metrics})
        now = time.monotonic()
        rate = (
            (step - self._last_logged_step) * self.batch_size / max(now - self._last_log_time, 1e-9)
        )
        line = f"loss {metrics['loss']:.4f}  lr {metrics['lr']:.2g}"
        self._progress_bar.update(
            self._progress_task, completed=step, figures=f"{line}  {rate:,.0f} samples/s"
        )
        if (
            now - self._last_log_time
            >= (LOG_INTERVAL_SECONDS if self._progress_bar.disable else 1.0)
            or step == self._start_step + 1
        ):
            left = (now - self._start_time) / (step - self._start_step) * (self.total_steps - step)
            if self._progress_bar.disable:
                self.log(
                    f"step {step}/{self.total_steps}  {line}  {rate:,.0f} samples/s  {format_duration(left)} left"
                )
            self._last_log_time, self._last_logged_step = now, step

    def log_evaluation(self, step: int, metrics: Mapping[str, float], metric: str) -> None:
        """Record all that validation found, say the metric, and draw the curve anew."""
        self._append({"step": step, "evaluation": dict(metrics)})
        told = (
            f"{metric} {metrics[metric]:.4g} on the validation rows"
            if metrics
            else "no validation rows"
        )
        self.log(f"step {step}/{self.total_steps}  {told}")
        atomic.write_file(
            self.path.with_name("curve.png"), draw_training_curve(self.entries, metric)
        )

    def log(self, message: str) -> None:
        """One line to whoever watches."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    def sync(self) -> None:
        """What was recorded is on the disk."""
        atomic.full_fsync(self._file.fileno())

    def _append(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)
        line = (json.dumps(entry) + "\n").encode()
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))


def read_metrics(path: Path, max_step: int | None = None) -> list[dict[str, Any]]:
    """The entries of a metrics.jsonl up to a step; it ends at a line that was never finished."""
    entries: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if max_step is None or entry["step"] <= max_step:
            entries.append(entry)
    return entries


def draw_training_curve(
    entries: Sequence[Mapping[str, Any]], metric: str, size: tuple[int, int] = (960, 420)
) -> bytes:
    """A PNG: the loss of every step from the left scale, the validation metric from the right one."""
    losses = [(e["step"], e["loss"]) for e in entries if "evaluation" not in e]
    found = [
        (e["step"], e["evaluation"][metric]) for e in entries if metric in e.get("evaluation", {})
    ]
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    pen.rectangle((60, 30, size[0] - 60, size[1] - 30), outline="#cccccc")
    steps = max([1, *(x for x, _ in losses + found)])
    _draw_curve(pen, size, losses, steps, "#1f77b4", "loss", right_axis=False)
    _draw_curve(pen, size, found, steps, "#d62728", metric, right_axis=True)
    pen.text((size[0] - 60, size[1] - 24), f"step {steps}", fill="black", font=_font(), anchor="ra")
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def format_duration(seconds: float) -> str:
    """1:02:03, or 2:03."""
    minutes, left = divmod(int(seconds), 60)
    return (
        f"{minutes}:{left:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{left:02}"
    )


def _draw_curve(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    points: Sequence[Point],
    max_step: int,
    color: str,
    label: str,
    right_axis: bool,
) -> None:
    """One curve with its own scale, the lowest and the highest value written at its side."""
    points = [p for p in _downsample(points, size[0] - 120) if math.isfinite(p[1])]
    if not points:
        return
    low, high = min(y for _, y in points), max(y for _, y in points)
    at = [
        (
            60 + x / max_step * (size[0] - 120),
            size[1] - 30 - (y - low) / ((high - low) or 1) * (size[1] - 60),
        )
        for x, y in points
    ]
    draw.line(at, fill=color, width=2)
    for x, y in at if len(at) <= 100 else []:
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=color)
    side, anchor = (size[0] - 4, "r") if right_axis else (4, "l")
    draw.text((side, 30), f"{high:.3g}", fill=color, font=_font(), anchor=anchor + "m")
    draw.text((side, size[1] - 30), f"{low:.3g}", fill=color, font=_font(), anchor=anchor + "m")
    draw.text((side, 6), label, fill=color, font=_font(), anchor=anchor + "a")


def _downsample(points: Sequence[Point], max_points: int) -> list[Point]:
    """At most that many points: means of equal stretches."""
    n = math.ceil(len(points) / max_points) or 1
    stretches = [points[i : i + n] for i in range(0, len(points), n)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in stretches]


def _font() -> Any:
    return ImageFont.load_default(13)

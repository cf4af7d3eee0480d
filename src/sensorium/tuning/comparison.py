"""What settings that were trained like for like came to: one table, and which of them to take.

R repetitions (folds, seeds)
"""

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

STUDENT_T_975 = (
    12.71,
    4.30,
    3.18,
    2.78,
    2.57,
    2.45,
    2.36,
    2.31,
    2.26,
    2.23,
)  # 97.5 % of Student's t, by degrees of freedom


@dataclass(frozen=True)
class RunResult:
    """What one run came to. folder: its place in that of the comparison. failed: why it has no figures."""

    folder: str
    metrics: dict[str, float]
    num_parameters: int
    cpu_seconds: float  # of training and judging
    error: str = ""


@dataclass(frozen=True)
class Setting:
    """What was varied, and what its runs came to, by repetition."""

    values: dict[str, Any]
    runs: dict[str, RunResult] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.values.items()) or "as it comes"

    @property
    def error(self) -> str:
        """Why one of its runs has no figures; "" where all have."""
        return next((run.error for run in self.runs.values() if run.error), "")

    def metric_values(self, metric: str) -> Float[np.ndarray, "R"]:
        """A figure of each run."""
        return np.array([run.metrics[metric] for run in self.runs.values()])

    def mean(self, metric: str) -> float:
        return float(self.metric_values(metric).mean())

    def format_metric(self, metric: str) -> str:
        """A figure's mean, and its standard deviation over repetitions."""
        values = self.metric_values(metric)
        return f"{values.mean():.4g}" + (f" ± {values.std(ddof=1):.2g}" if len(values) > 1 else "")


@dataclass(frozen=True)
class Comparison:
    """Settings side by side. data: as a command line names them. mode: whether the lowest or the highest metric
    is the best.

    fixed: keywords that all have in common. results: (setting, repetition, result) of each run.
    """

    recipe: str
    dataset_arguments: Sequence[str]
    metric: str
    mode: Literal["min", "max"]
    folds: int
    fixed_keywords: dict[str, Any]
    results: Sequence[tuple[dict[str, Any], str, RunResult]]
    folder: Path

    @cached_property
    def settings(self) -> list[Setting]:
        """All of them, the best first, those that failed last."""
        found: dict[str, Setting] = {}
        for values, repeat, result in self.results:
            found.setdefault(str(values), Setting(values)).runs[repeat] = result
        failed = [s for s in found.values() if s.error]
        return (
            sorted(
                (s for s in found.values() if not s.error),
                key=lambda s: s.mean(self.metric),
                reverse=self.mode == "max",
            )
            + failed
        )

    @property
    def best(self) -> Setting | None:
        """The one to take; None where all failed."""
        return None if self.settings[0].error else self.settings[0]

    @cached_property
    def tied(self) -> list[Setting]:
        """Those that the repetitions do not tell from the best: by paired differences, at 95 %.

        The spread of differences between folds is widened, since their training rows overlap (Nadeau and Bengio 2003).
        """
        best, n = self.best, len(next(iter(self.settings)).runs)
        if best is None or n < 2:
            return []
        found = []
        for other in self.settings[1:]:
            if not other.error:
                apart = best.metric_values(self.metric) - other.metric_values(self.metric)
                error = (
                    apart.std(ddof=1) * (1 / n + (1 / (self.folds - 1) if self.folds else 0)) ** 0.5
                )
                if abs(apart.mean()) <= STUDENT_T_975[min(n - 2, len(STUDENT_T_975) - 1)] * error:
                    found.append(other)
        return found

    def column_names(self) -> list[str]:
        """The names of the table's columns."""
        names = next((list(s.runs.values())[0].metrics for s in self.settings if not s.error), {})
        rest = [name for name in names if name != self.metric]
        return [*self.settings[0].values, self.metric, *rest, "parameters", "CPU seconds"]

    def table_rows(self) -> list[list[str]]:
        """The table's cells, the best setting first."""
        head = self.column_names()
        figures = head[len(self.settings[0].values) : -2]
        return [
            [
                *map(str, s.values.values()),
                *(s.format_metric(f) if not s.error else "failed" for f in figures),
                f"{max(run.num_parameters for run in s.runs.values()):,}",
                f"{np.mean([run.cpu_seconds for run in s.runs.values()]):.1f}",
            ]
            for s in self.settings
        ]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | Text]:
        table = Table(*self.column_names())
        for row in self.table_rows():
            table.add_row(*map(Text, row))
        yield table
        yield Text(self.recommendation())

    def to_markdown(self) -> str:
        """For a file."""
        lines = [
            "| " + " | ".join(row) + " |"
            for row in (self.column_names(), ["---"] * len(self.column_names()), *self.table_rows())
        ]
        head = f"# Comparison of {self.recipe} on {Path(self.dataset_arguments[0]).name}"
        return "\n\n".join([head, "\n".join(lines), self.recommendation()]) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        settings = [
            {
                "setting": s.values,
                "failed": s.error,
                "runs": {
                    repeat or "once": {**vars(run), "folder": str(self.folder / run.folder)}
                    for repeat, run in s.runs.items()
                },
            }
            for s in self.settings
        ]
        return {
            "recipe": self.recipe,
            "data": self.dataset_arguments[0],
            "metric": self.metric,
            "folds": self.folds,
            "take": self.best.values if self.best else None,
            "not told apart": [s.values for s in self.tied],
            "settings": settings,
        }

    def recommendation(self) -> str:
        """Which to take, how sure that is, and how to have it."""
        best = self.best
        if best is None:
            return f"All failed: {self.settings[0].error}"
        n, failed = (
            len(best.runs),
            [f"{s.name} failed: {s.error}" for s in self.settings if s.error],
        )
        judged = f"{n} runs" + (
            f" on {self.folds} folds of train" if self.folds else " on the rows of val"
        )
        told = f"Take {best.name}: {self.metric} {best.format_metric(self.metric)}" + (
            f", {judged}." if n > 1 else "."
        )
        return "\n".join([told, self._significance_note(), *failed, self._next_command(best)])

    def _significance_note(self) -> str:
        if len(next(iter(self.settings)).runs) < 2:
            return (
                "One run each, on rows of val that also chose its weights: small differences are chance. --folds 5 "
                "judges on rows that chose nothing, and shows how far figures vary; so does --seed 0,1,2."
            )
        if not self.tied:
            return (
                "It is better than each of the others beyond chance (95 %)."
                if len(self.settings) > 1
                else "Mean and standard deviation."
            )
        small = min(
            [self.settings[0], *self.tied],
            key=lambda s: max(run.num_parameters for run in s.runs.values()),
        )
        return (
            f"Not told apart from it (paired differences, 95 %): {', '.join(s.name for s in self.tied)}. "
            f"Of all these {small.name} has the fewest parameters."
        )

    def _next_command(self, setting: Setting) -> str:
        if not self.folds:
            return f"It lies in {self.folder / next(iter(setting.runs.values())).folder}"
        given = [self.recipe, *self.dataset_arguments] + [
            part
            for name, value in {**self.fixed_keywords, **setting.values}.items()
            for one in _each(value)
            for part in (f"--{name.strip('_').replace('_', '-')}", _option_value(one))
        ]
        return f"To train it on all rows of train: sensorium train {shlex.join(given)}"


def _each(value: Any) -> list[Any]:
    """What an option is given, once for each."""
    if isinstance(value, dict):
        return [f"{name}={one}" for name, one in value.items()]
    return list(value) if isinstance(value, list | tuple) else [value]


def _option_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

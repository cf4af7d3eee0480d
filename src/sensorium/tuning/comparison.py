"""The result of comparing settings: a table, and which setting to take.

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

from sensorium.errors import escape_controls, escape_line

# 97.5 % quantiles of Student's t for 1 to 10 degrees of freedom (a table: scipy is an extra)
STUDENT_T_975 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


@dataclass(frozen=True)
class RunResult:
    """The result of one run.

    Attributes:
        folder: its folder, relative to that of the comparison.
        metrics: metrics by name.
        num_parameters: number of parameters of the model.
        cpu_seconds: CPU seconds of training and evaluation.
        error: why it has no metrics; "" where it has.
    """

    folder: str
    metrics: dict[str, float]
    num_parameters: int
    cpu_seconds: float
    error: str = ""


@dataclass(frozen=True)
class Setting:
    """A combination of the varied keywords.

    Attributes:
        values: the varied keywords.
        runs: its results by repetition.
    """

    values: dict[str, Any]
    runs: dict[str, RunResult] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The setting as text."""
        return " ".join(f"{name}={value}" for name, value in self.values.items()) or "defaults"

    @property
    def error(self) -> str:
        """Why one of its runs has no metrics; "" if all have."""
        return next((run.error for run in self.runs.values() if run.error), "")

    @property
    def num_parameters(self) -> int:
        """The number of parameters of the largest of its models."""
        return max(run.num_parameters for run in self.runs.values())

    def metric_values(self, metric: str) -> Float[np.ndarray, "R"]:
        """Return a metric of each run."""
        return np.array([run.metrics[metric] for run in self.runs.values()])

    def mean(self, metric: str) -> float:
        """Return a metric's mean over repetitions."""
        return float(self.metric_values(metric).mean())

    def format_metric(self, metric: str) -> str:
        """Return a metric's mean and its standard deviation over repetitions."""
        values = self.metric_values(metric)
        spread = f" ± {values.std(ddof=1):.2g}" if len(values) > 1 else ""
        return f"{values.mean():.4g}{spread}"


@dataclass(frozen=True)
class Comparison:
    """Settings that were trained and evaluated on the same rows.

    Attributes:
        recipe: name of the recipe.
        dataset_arguments: the data as command-line arguments.
        metric: metric that settings are ranked by.
        mode: whether the lowest ("min") or the highest ("max") value is best.
        folds: number of cross-validation folds; 0: none.
        fixed_keywords: keywords that all settings share.
        results: (varied keywords, repetition, result) of each run.
        folder: folder of the runs.
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
        """All settings, the best first and those that failed last."""
        settings: dict[str, Setting] = {}
        for values, repetition, result in self.results:
            settings.setdefault(str(values), Setting(values)).runs[repetition] = result
        failed = [s for s in settings.values() if s.error]
        ranked = sorted(
            (s for s in settings.values() if not s.error),
            key=lambda s: s.mean(self.metric),
            reverse=self.mode == "max",
        )
        return ranked + failed

    @property
    def best(self) -> Setting | None:
        """The best setting; None if all failed."""
        return None if self.settings[0].error else self.settings[0]

    @cached_property
    def tied(self) -> list[Setting]:
        """The settings that are not significantly worse than the best (paired t-test, 95 %).

        The variance of differences between folds is corrected for their overlapping training rows
        (Nadeau and Bengio 2003).
        """
        best, n = self.best, len(self.settings[0].runs)
        if best is None or n < 2:
            return []
        overlap = 1 / (self.folds - 1) if self.folds else 0
        quantile = STUDENT_T_975[min(n - 2, len(STUDENT_T_975) - 1)]
        tied = []
        for other in self.settings[1:]:
            if other.error:
                continue
            difference = best.metric_values(self.metric) - other.metric_values(self.metric)
            standard_error = difference.std(ddof=1) * (1 / n + overlap) ** 0.5
            if abs(difference.mean()) <= quantile * standard_error:
                tied.append(other)
        return tied

    def column_names(self) -> list[str]:
        """Return the column names of the table."""
        metrics = next(
            (next(iter(s.runs.values())).metrics for s in self.settings if not s.error), {}
        )
        others = [name for name in metrics if name != self.metric]
        return [*self.settings[0].values, self.metric, *others, "parameters", "CPU seconds"]

    def table_rows(self) -> list[list[str]]:
        """Return the cells of the table, the best setting first."""
        metrics = self.column_names()[len(self.settings[0].values) : -2]
        return [
            [
                *map(str, s.values.values()),
                *("failed" if s.error else s.format_metric(metric) for metric in metrics),
                f"{s.num_parameters:,}",
                f"{np.mean([run.cpu_seconds for run in s.runs.values()]):.1f}",
            ]
            for s in self.settings
        ]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | Text]:
        table = Table(*self.column_names())
        for row in self.table_rows():
            table.add_row(*(Text(escape_line(cell)) for cell in row))
        yield table
        yield Text(escape_controls(self.recommendation()))

    def to_markdown(self) -> str:
        """Return the table and the recommendation as Markdown."""
        names = self.column_names()
        rows = [names, ["---"] * len(names), *self.table_rows()]
        table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        title = f"# Comparison of {self.recipe} on {Path(self.dataset_arguments[0]).name}"
        return "\n\n".join([title, table, self.recommendation()]) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as plain values."""
        settings = [
            {
                "setting": s.values,
                "error": s.error,
                "runs": {
                    repetition or "once": {**vars(run), "folder": str(self.folder / run.folder)}
                    for repetition, run in s.runs.items()
                },
            }
            for s in self.settings
        ]
        return {
            "recipe": self.recipe,
            "data": self.dataset_arguments[0],
            "metric": self.metric,
            "folds": self.folds,
            "best": self.best.values if self.best else None,
            "tied": [s.values for s in self.tied],
            "settings": settings,
        }

    def recommendation(self) -> str:
        """Return which setting to take, how certain that is, and how to train it."""
        best = self.best
        if best is None:
            return f"All settings failed: {self.settings[0].error}"
        n = len(best.runs)
        rows = f"{self.folds} folds of the training split" if self.folds else "the validation split"
        repetitions = f", {n} runs on {rows}" if n > 1 else ""
        lines = [
            f"Best: {best.name}, {self.metric} {best.format_metric(self.metric)}{repetitions}."
        ]
        lines.append(self._significance_note())
        lines += [f"{s.name} failed: {s.error}" for s in self.settings if s.error]
        lines.append(self._next_command(best))
        return "\n".join(lines)

    def _significance_note(self) -> str:
        if len(self.settings[0].runs) < 2:
            return (
                "One run each, on the validation split that also selected its weights: small "
                "differences may be noise. --folds 5 evaluates on rows that selected nothing and "
                "shows the variation; so does --seed 0,1,2."
            )
        if len(self.settings) == 1:
            return "Mean and standard deviation."
        if not self.tied:
            return "It is significantly better than each of the others (paired differences, 95 %)."
        smallest = min([self.settings[0], *self.tied], key=lambda s: s.num_parameters)
        names = ", ".join(s.name for s in self.tied)
        return (
            f"Not significantly worse (paired differences, 95 %): {names}. "
            f"Of all these, {smallest.name} has the fewest parameters."
        )

    def _next_command(self, setting: Setting) -> str:
        if not self.folds:
            return f"Its run: {self.folder / next(iter(setting.runs.values())).folder}"
        arguments = [self.recipe, *self.dataset_arguments]
        for name, value in {**self.fixed_keywords, **setting.values}.items():
            for item in _option_values(value):
                arguments += [f"--{name.replace('_', '-')}", _format_option_value(item)]
        return f"Train it on the whole training split: sensorium train {shlex.join(arguments)}"


def _option_values(value: Any) -> list[Any]:
    """Return the values of an option, one for each time it is repeated."""
    if isinstance(value, dict):
        return [f"{name}={item}" for name, item in value.items()]
    return list(value) if isinstance(value, list | tuple) else [value]


def _format_option_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

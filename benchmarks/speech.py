"""Word error rate of published Whisper models on telephone prompts of known text, and the time they take.

The prompts are those of the Debian packages asterisk-core-sounds-LANGUAGE (texts) and -LANGUAGE-wav (sounds), unpacked
with dpkg -x; of all that have five words or more, evenly spaced ones.

    python benchmarks/speech.py WEIGHTS/whisper-base asterisk --language it --n 15
"""
import argparse
import gzip
import json
import time
from pathlib import Path

import torch

import sensorium as sn
from sensorium.metrics.speech import word_error_rate

RESULTS = Path(__file__).parent / "results" / "weights.jsonl"


def prompts(folder: Path, language: str, n: int) -> list[tuple[Path, str]]:
    """(file, text) of n prompts; those that are tones, in [brackets], are left out."""
    listed = next(folder.rglob(f"core-sounds-{language}.txt.gz"))
    lines = gzip.open(listed, "rt", encoding="utf-8").read().splitlines()
    texts = dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith(";"))
    voice = next(path for path in folder.rglob(f"{language}_*") if path.is_dir())
    rows = [(voice / f"{key}.wav", text.strip()) for key, text in sorted(texts.items())
            if len(text.split()) >= 5 and "[" not in text and (voice / f"{key}.wav").is_file()]
    return rows[::max(1, len(rows) // n)][:n]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("sounds", type=Path)
    parser.add_argument("--language", default="en")
    parser.add_argument("--n", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--unpadded", action="store_true", help="sounds as long as they are, not brought to 30 s")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = prompts(asked.sounds, asked.language, asked.n)
    model = sn.load(asked.weights)
    start = time.process_time()
    said = model.generate("text", audio=[file for file, _ in rows], padded=not asked.unpadded,
                          **({} if asked.language == "en" else {"language": asked.language}))
    found = {"test": f"{asked.weights.name} {asked.language}", "prompts": len(rows), "padded": not asked.unpadded,
             "wer": round(word_error_rate(said, [text for _, text in rows]), 4),
             "cpu_s": round(time.process_time() - start, 1), "threads": asked.threads}
    print(json.dumps(found))
    with open(RESULTS, "a") as file:
        file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()

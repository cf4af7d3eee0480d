"""Word error rate of published Whisper models on telephone prompts of known text, and the time they take.

The prompts are those of the Debian packages asterisk-core-sounds-LANGUAGE (texts) and -LANGUAGE-wav (sounds), unpacked
with dpkg -x; of all that have five words or more, evenly spaced ones.

    python benchmarks/speech.py WEIGHTS/whisper-base asterisk --language it --n 15 [--beside]

With --beside also transformers' Whisper on the same weights: how many prompts it writes down in the very same words.
Its encoder hears 30 seconds, so of a longer prompt the beginning alone.
"""

import argparse
import gzip
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import peers
import torch

import sensorium as sn
from sensorium.metrics.speech import word_error_rate
from sensorium.pretrained.family import export_from
from sensorium.pretrained.transcribe import WINDOW_SECONDS
from sensorium.pretrained.whisper import WHISPER

RESULTS = Path(__file__).parent / "results" / "weights.jsonl"


def prompts(folder: Path, language: str, n: int) -> list[tuple[Path, str]]:
    """(file, text) of n prompts; those that are tones, in [brackets], are left out."""
    listed = next(folder.rglob(f"core-sounds-{language}.txt.gz"))
    lines = gzip.open(listed, "rt", encoding="utf-8").read().splitlines()
    texts = dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith(";"))
    voice = next(path for path in folder.rglob(f"{language}_*") if path.is_dir())
    rows = [
        (voice / f"{key}.wav", text.strip())
        for key, text in sorted(texts.items())
        if len(text.split()) >= 5 and "[" not in text and (voice / f"{key}.wav").is_file()
    ]
    return rows[:: max(1, len(rows) // n)][:n]


@torch.inference_mode()
def beside(model: Any, files: list[Path], language: str) -> list[str]:
    """The likeliest words by transformers' Whisper on the model's weights."""
    peers.allow_torchvision()
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    verb, config = model.verbs["generate"], model.config | {"layout": "safetensors"}
    known = WhisperConfig().to_dict()
    source = WhisperForConditionalGeneration(
        WhisperConfig(**{k: v for k, v in config.items() if k in known})
    ).eval()
    source.load_state_dict(export_from(verb.model, WHISPER.map_weights(config)), strict=False)
    source.tie_weights()
    heard, said = replace(verb.audio, seconds=WINDOW_SECONDS), []
    for file in files:
        told = torch.tensor([[verb.start, *verb._told(language, "transcribe")]])
        ids = source.generate(
            heard.collate([verb.audio.load(file)]),
            decoder_input_ids=told,
            max_new_tokens=verb.text.length // 2,
            do_sample=False,
            num_beams=1,
            eos_token_id=verb.text.ends[0],
            pad_token_id=verb.text.ends[0],
            suppress_tokens=list(verb.text.never),
            begin_suppress_tokens=list(verb.text.never_first),
        )
        said.append(verb.text.show(ids[0]).strip())
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("sounds", type=Path)
    parser.add_argument("--language", default="en")
    parser.add_argument("--n", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--unpadded", action="store_true", help="sounds as long as they are, not brought to 30 s"
    )
    parser.add_argument(
        "--beside", action="store_true", help="transformers on the same weights, too"
    )
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    rows = prompts(asked.sounds, asked.language, asked.n)
    model = sn.load(asked.weights)
    start = time.process_time()
    said = model.generate(
        "text",
        audio=[file for file, _ in rows],
        padded=not asked.unpadded,
        **({} if asked.language == "en" else {"language": asked.language}),
    )
    found = {
        "test": f"{asked.weights.name} {asked.language}",
        "prompts": len(rows),
        "padded": not asked.unpadded,
        "wer": round(word_error_rate(said, [text for _, text in rows]), 4),
        "cpu_s": round(time.process_time() - start, 1),
        "threads": asked.threads,
    }
    if asked.beside:
        theirs = beside(model, [file for file, _ in rows], asked.language)
        found |= {
            "transformers_wer": round(word_error_rate(theirs, [text for _, text in rows]), 4),
            "same": sum(a == b for a, b in zip(said, theirs, strict=True)),
        }
    print(json.dumps(found))
    with open(RESULTS, "a") as file:
        file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()

"""Measure the word error rate and time of pretrained Whisper models on telephone prompts.

The prompts are those of the Debian packages asterisk-core-sounds-LANGUAGE (texts) and
-LANGUAGE-wav (audio), unpacked with dpkg -x; evenly spaced ones of at least five words.

    python benchmarks/speech.py WEIGHTS/whisper-base asterisk --language it --n 15 [--peer]

With --peer also transformers' Whisper on the same weights: how many transcriptions are identical.
Its encoder reads 30 seconds, so only the beginning of a longer prompt.
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
from sensorium.pretrained.transcribe import WINDOW_SECONDS
from sensorium.pretrained.weight_mapping import export_from
from sensorium.pretrained.whisper import WHISPER

RESULTS = Path(__file__).parent / "results" / "weights.jsonl"


def prompts(folder: Path, language: str, n: int) -> list[tuple[Path, str]]:
    """Return (file, text) of n prompts; tones, in [brackets], are left out."""
    listed = next(folder.rglob(f"core-sounds-{language}.txt.gz"))
    lines = gzip.open(listed, "rt", encoding="utf-8").read().splitlines()
    texts = dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith(";"))
    folder_of_files = next(path for path in folder.rglob(f"{language}_*") if path.is_dir())
    rows = [
        (folder_of_files / f"{key}.wav", text.strip())
        for key, text in sorted(texts.items())
        if len(text.split()) >= 5 and "[" not in text and (folder_of_files / f"{key}.wav").is_file()
    ]
    return rows[:: max(1, len(rows) // n)][:n]


@torch.inference_mode()
def transcribe_with_transformers(model: Any, files: list[Path], language: str) -> list[str]:
    """Return the greedy transcriptions of transformers' Whisper with the model's weights."""
    peers.allow_torchvision()
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    verb, config = model.verbs["generate"], model.config | {"layout": "safetensors"}
    known = WhisperConfig().to_dict()
    source = WhisperForConditionalGeneration(
        WhisperConfig(**{k: v for k, v in config.items() if k in known})
    ).eval()
    source.load_state_dict(export_from(verb.model, WHISPER.map_weights(config)), strict=False)
    source.tie_weights()
    audio, transcriptions = replace(verb.audio, seconds=WINDOW_SECONDS), []
    for file in files:
        prompt = torch.tensor([[verb.start_id, *verb._prompt_ids(language, "transcribe")]])
        ids = source.generate(
            audio.collate([verb.audio.load(file)]),
            decoder_input_ids=prompt,
            max_new_tokens=verb.text.length // 2,
            do_sample=False,
            num_beams=1,
            eos_token_id=verb.text.stop_ids[0],
            pad_token_id=verb.text.stop_ids[0],
            suppress_tokens=list(verb.text.suppressed_tokens),
            begin_suppress_tokens=list(verb.text.begin_suppressed_tokens),
        )
        transcriptions.append(verb.text.decode(ids[0]).strip())
    return transcriptions


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", type=Path)
    parser.add_argument("audio", type=Path)
    parser.add_argument("--language", default="en")
    parser.add_argument("--n", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--unpadded", action="store_true", help="do not pad audio to 30 s")
    parser.add_argument(
        "--peer", action="store_true", help="also run transformers on the same weights"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = prompts(args.audio, args.language, args.n)
    model = sn.load(args.weights)
    start = time.process_time()
    transcriptions = model.generate(
        "text",
        audio=[file for file, _ in rows],
        pad_to_window=not args.unpadded,
        **({} if args.language == "en" else {"language": args.language}),
    )
    result = {
        "test": f"{args.weights.name} {args.language}",
        "prompts": len(rows),
        "padded": not args.unpadded,
        "wer": round(word_error_rate(transcriptions, [text for _, text in rows]), 4),
        "cpu_s": round(time.process_time() - start, 1),
        "threads": args.threads,
    }
    if args.peer:
        theirs = transcribe_with_transformers(model, [file for file, _ in rows], args.language)
        result |= {
            "transformers_wer": round(word_error_rate(theirs, [text for _, text in rows]), 4),
            "same": sum(a == b for a, b in zip(transcriptions, theirs, strict=True)),
        }
    print(json.dumps(result))
    with open(RESULTS, "a") as file:
        file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()

"""Snapshots of the commonest errors of each command: one line, what is wrong and what to do.

After a deliberate change: `python tests/test_error_messages.py`, and read the diff.
"""

import contextlib
import io
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SNAPSHOT = Path(__file__).parent / "snapshots" / "errors.json"
SMALL = "--epochs 1 --batch-size 4 --precision fp32 --dim 16"
CASES = {
    "data": """
        data nowhere
        data empty
        data photos --type caption
        data photos --type captoin=text
        data photos --type caption=txt
        data photos --type caption=image
        data photos --group nothing
        data photos --split nothing
        data emoji --source-option languages
        data scenes --source-option m=3
        data broken.csv
        data emojis""",
    "data build": """
        data build
        data build emojis --out x
        data build emoji
        data build emoji --out x --size small
        data build emoji --out photos --packages nowhere""",
    "train": """
        train clip
        train clp photos
        train clip nowhere
        train clip photos --dmi 3
        train clip photos --dim wide
        train clip photos --projection bilinear
        train clip photos --text captoin
        train clip photos --text image
        train clip photos --lr -1
        train clip photos --precision fp8
        train clip photos --out run
        train clip photos --out run --resume --dim 32
        train clip photos --out nothing --resume
        train clip table.csv
        train fusion table.csv --target pirce
        train fusion table.csv --target label --columns label
        train fusion table.csv --target label --encoders size=gru
        train captioner photos --vision-weights nowhere
        train dalle photos --tokenizer run
        train dalle photos --tokenizer nowhere
        train finetune photos
        train finetune photos --weights photos
        train ./mine.py photos
        train ./mine.py:nothing photos
        train ./nomine.py:mine photos""",
    "compare": """
        compare fusion
        compare fusion table.csv --target label --fusion sum
        compare fusion table.csv --target label --fusion sum,summ
        compare fusion table.csv --target label --modality-dropout x
        compare fusion table.csv --target label --folds 1
        compare fusion table.csv --target label --folds 999
        compare fusion table.csv --target label --dim 16,32 --lr 0.1,-1
        compare fusion table.csv --target label --dim 16,32 --out run
        compare clip nowhere
        compare clp photos""",
    "evaluate": """
        evaluate
        evaluate nowhere photos
        evaluate photos photos
        evaluate empty photos
        evaluate run nowhere
        evaluate run photos --split tset
        evaluate run photos --max-samples 3
        evaluate run photos --text-column captoin
        evaluate run table.csv
        evaluate predictor table.csv --average-captions
        evaluate predictor table.csv --feature-model nowhere""",
    "interpolate": """
        interpolate
        interpolate nowhere
        interpolate photos
        interpolate run
        interpolate run --alpha half
        interpolate run --alpha 0.5 --out x
        interpolate predictor
        interpolate run photos --reference nowhere""",
    "index": """
        index
        index photos
        index run photos --model run
        index nowhere photos
        index photos photos
        index run nowhere
        index run photos --split tset
        index predictor table.csv
        index run table.csv
        index run photos --max-invalid-fraction many
        index run photos --type captoin=text""",
    "classify": """
        classify
        classify run --label red --label blue
        classify run photos
        classify run photos --label red
        classify run photos --label red --label red
        classify run photos --label red --labels nowhere.txt
        classify run photos --label red --label blue --template plain
        classify run photos --label red --label blue -o labels.xlsx
        classify run nowhere --label red --label blue
        classify predictor photos --label red --label blue""",
    "search": """
        search
        search nowhere red
        search photos red
        search run red -k 0
        search run
        search run --image nowhere.png
        search run red --out found.gif
        search run red --model nowhere
        search run red --model predictor
        search run red -k many
        search run red --text-only --vector-only
        search run --image photos/03.png --text-only""",
    "generate": """
        generate
        generate nowhere x
        generate photos x
        generate run x
        generate predictor x
        generate captioner --image nowhere.png
        generate captioner --image photos/00.png --num-beams 9999
        generate captioner --image photos/00.png --temperature -1
        generate captioner --image photos/00.png --question why
        generate captioner --image photos/00.png --guidance-scale 3
        generate captioner --image photos/00.png --quantize int4""",
    "predict": """
        predict
        predict predictor
        predict nowhere table.csv
        predict photos table.csv
        predict run table.csv
        predict predictor nowhere.csv
        predict predictor table.csv -o table.csv
        predict predictor table.csv -o out.txt
        predict predictor photos
        predict predictor table.csv --coverage 2
        predict predictor table.csv --min-accuracy high""",
    "export": """
        export
        export run
        export nowhere --format hf --out x
        export photos --format hf --out x
        export run --format gguf --out x
        export run --format hf
        export run --format hf --out photos
        export predictor --format hf --out x
        export predictor --format open_clip --out x
        export captioner --format onnx --out x""",
    "summary": """
        summary
        summary nowhere
        summary clop
        summary photos
        summary clip --dim wide
        summary clip --dmi 3
        summary clip --data nowhere
        summary fusion --target price
        summary fusion --data table.csv --target pirce
        summary clip --type image=text""",
    "convert-checkpoint": """
        convert-checkpoint
        convert-checkpoint nowhere.bin
        convert-checkpoint table.csv
        convert-checkpoint photos
        convert-checkpoint broken.pt
        convert-checkpoint broken.pt --key
        convert-checkpoint broken.pt --out""",
    "other": """
        trian
        --use
        --use nothing.py data photos
        --use table.csv data photos
        doctor --jason
        demo --out table.csv
        completion
        completion tcsh""",
}
LINES = {
    name: [line.strip() for line in lines.strip().splitlines()] for name, lines in CASES.items()
}


def run_command(line: str) -> dict[str, object]:
    """Return the exit status and the message of a command that fails."""
    from sensorium.cli import app

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = app.run(shlex.split(line))
    text = err.getvalue().strip().replace(str(Path.cwd()), ".")
    text = text.replace(str(Path(__file__).parents[1]), "...")
    text = re.sub(r"weights [0-9a-f]{12}, not [0-9a-f]{12}", "weights ..., not ...", text)
    return {"status": status, "message": re.sub(r"0x[0-9a-f]+", "0x...", text)}


def make_workspace(folder: Path) -> None:
    """Write data, and train a CLIP, a predictor and a captioner on them."""
    from sensorium.cli import app

    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    (folder / "empty").mkdir()
    for i in range(16):
        image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        image.save(folder / "photos" / f"{i:02}.png")
        (folder / "photos" / f"{i:02}.txt").write_text(f"image number {i}\n")
    rows = [f"{i % 7},{'round' if i % 2 else 'flat'},{'yes' if i % 3 else 'no'}" for i in range(60)]
    (folder / "table.csv").write_text("\n".join(["size,shape,label", *rows]) + "\n")
    (folder / "broken.csv").write_bytes(b'a,b\n1,"2\n')
    (folder / "broken.pt").write_bytes(b"not a checkpoint")
    (folder / "mine.py").write_text("def nothing_here() -> None:\n    pass\n")
    size = f"--type image=image:size=16 {SMALL}"
    for line in (
        f"train clip photos --out run {size} --image-layers 1 --text-layers 1",
        f"train fusion table.csv --target label --out predictor {SMALL} --layers 1",
        f"train captioner photos --out captioner {size} --layers 1",
        "index run photos",
    ):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert app.run(shlex.split(line)) == 0, line


@pytest.fixture(scope="module")
def _workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Change to a folder with the data and runs that the commands name."""
    before, folder = Path.cwd(), tmp_path_factory.mktemp("errors")
    os.chdir(folder)
    make_workspace(folder)
    yield
    os.chdir(before)


@pytest.mark.usefixtures("_workspace")
@pytest.mark.parametrize("name", LINES)
def test_errors_are_those_of_the_snapshot(name: str) -> None:
    snapshot = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    assert {line: run_command(line) for line in LINES[name]} == snapshot[name]


@pytest.mark.parametrize("name", LINES)
def test_every_error_is_a_sentence(name: str) -> None:
    for line, error in json.loads(SNAPSHOT.read_text(encoding="utf-8"))[name].items():
        assert error["status"] in (1, 2), line
        message = error["message"]
        assert message.startswith("sensorium: "), line
        assert message.endswith("--help" if error["status"] == 2 else "."), f"{line}: {message}"
        assert not re.search(r"Traceback|NoneType|object at|TypeError|KeyError", message), message


if __name__ == "__main__":
    os.chdir(tempfile.mkdtemp())
    make_workspace(Path.cwd())
    errors = {name: {line: run_command(line) for line in lines} for name, lines in LINES.items()}
    SNAPSHOT.parent.mkdir(exist_ok=True)
    SNAPSHOT.write_text(json.dumps(errors, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.exit(0)

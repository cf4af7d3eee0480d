"""The command line: commands, their examples, and what a shell is told when one ends."""
import inspect
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, Literal, NoReturn

from cyclopts import App, CycloptsError

from sensorium import __version__, keywords
from sensorium.commands import (
    blend,
    build,
    compare,
    convert,
    data,
    demo,
    doctor,
    evaluate,
    export,
    generate,
    index,
    predict,
    search,
    show,
    show_run,
    train,
)
from sensorium.errors import SensoriumError
from sensorium.options import with_keywords
from sensorium.tell import say

ABOUT = """One model over pictures, words and everything else about the same things.

Before a command, --use FILE.py runs a file of your own that adds a kind of column."""
HOW_COMPARED = inspect.cleandoc(str(compare.__doc__)).partition("\n\n")[2]
EXAMPLES = {
    "sensorium": """
        sensorium demo
        sensorium data photos/
        sensorium train clip photos/ --out runs/photos
        sensorium index runs/photos photos/
        sensorium search runs/photos "a red bicycle" --out results.html
        sensorium --use points.py data scans.csv""",
    "data": """
        sensorium data photos/
        sensorium data products.csv --column price=ignore --group product_id
        sensorium data emoji --json
        sensorium data scenes --option n=5000 --option size=64
        sensorium data build emoji --full --out emoji-full""",
    "build": """
        sensorium data build emoji --out emoji-64
        sensorium data build emoji --full --packages tarballs/ --out emoji-full""",
    "train": """
        sensorium train clip --help
        sensorium train clip photos/ --dim 256 --epochs 5
        sensorium train clip photos/ --out runs/photos --resume
        sensorium train ./mine.py:recipe photos/""",
    "compare": """
        sensorium compare fusion products.csv --target price
        sensorium compare fusion products.csv --target price --fuse concat,sum,gated --folds 5
        sensorium compare clip photos/ --dim 128,256 --epochs 5 --out runs/widths""",
    "blend": """
        sensorium blend runs/photos
        sensorium blend runs/photos --reference old-photos/
        sensorium blend runs/photos --alpha 0.6 --out runs/photos-blend""",
    "evaluate": """
        sensorium evaluate runs/photos photos/
        sensorium evaluate runs/emoji emoji --split test_both --text caption_de""",
    "export": """
        sensorium export runs/photos --to hf --out photos-clip
        sensorium export runs/photos --to open_clip --out photos-open-clip
        sensorium export runs/houses --to onnx --out houses-onnx""",
    "index": """
        sensorium index runs/photos photos/
        sensorium index runs/photos new-photos/ --out new.index""",
    "search": """
        sensorium search runs/photos "a red bicycle"
        sensorium search runs/photos --image a.jpg -k 20 --out results.html
        sensorium search runs/photos "at night" --image a.jpg --json""",
    "generate": """
        sensorium generate runs/dalle "a red apple" -o apple.png
        sensorium generate runs/dalle "a red apple" "a blue fish" -n 6 --guidance 3 --rerank runs/clip -o grid.png
        sensorium generate runs/captioner --image apple.png
        sensorium generate runs/vqa --image scene.png --question "what colour is the circle?"
        sensorium generate runs/gpt "once upon a time" --temperature 0.8 --seed 1""",
    "predict": """
        sensorium train fusion products.csv --target price --out runs/price
        sensorium predict runs/price new.csv -o priced.csv""",
    "show": """
        sensorium show clip --dim 1024 --depth 24
        sensorium show clip --data photos/ --batch-size 512
        sensorium show runs/photos
        sensorium show openai/clip-vit-base-patch32""",
    "convert": """
        sensorium convert pytorch_model.bin
        sensorium convert last.ckpt --key ema_state_dict --out model.safetensors""",
    "demo": """
        sensorium demo
        sensorium demo --out somewhere""",
    "doctor": """
        sensorium doctor
        sensorium doctor --json""",
    "completion": """
        sensorium completion bash > ~/.local/share/bash-completion/completions/sensorium""",
}


def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print what makes a shell complete commands and options."""
    print(command_line(["train"]).generate_completion(shell=shell))


def command_line(argv: Sequence[str] = ()) -> App:
    """The whole of it, with recipes only where `argv` asks for them; one of the user's own becomes a command too."""
    app = _app("sensorium", version=__version__, help=ABOUT)
    reader, shower = _app("data", default_command=data), _app("show", default_command=show_run)
    trainer, comparer = _app("train", help=train.__doc__), _app("compare", help=compare.__doc__)
    reader.command(build, help_epilogue=_examples("build"))
    asked = argv[:2] if argv and argv[0] in ("train", "compare", "show") else ()
    own = [keywords.read(name) for name in asked[1:] if keywords.is_file(name)]
    for recipe in [*keywords.shipped(*asked[1:]).values(), *own] if asked else []:
        trainer.command(with_keywords(train, recipe, recipe.doc), name=recipe.name, help_epilogue=_examples("train"))
        comparer.command(with_keywords(compare, recipe, f"{recipe.line}\n\n{HOW_COMPARED}", several=True),
                         name=recipe.name, help_epilogue=_examples("compare"))
        shower.command(with_keywords(show, recipe, show.__doc__), name=recipe.name, help_epilogue=_examples("show"))
    order = [reader, trainer, comparer, evaluate, blend, index, search, generate, predict, export, shower, convert,
             demo, doctor, completion]
    for place, command in enumerate(order):
        if isinstance(command, App):
            command.sort_key = place
            app.command(command)
        else:
            app.command(command, sort_key=place, help_epilogue=_examples(command.__name__))
    return app


def run(argv: Sequence[str]) -> int:
    """Run a command line; the exit status: 0 done, 1 could not be done, 2 was not understood."""
    try:
        argv = _used(argv)
        command_line(argv)(argv, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as e:
        return _failed(2, f"{e} See: {' '.join(['sensorium', *(e.command_chain or ())])} --help")
    except SensoriumError as e:
        if os.environ.get("SENSORIUM_DEBUG"):
            raise
        return _failed(getattr(e, "code", 1), str(e))
    except KeyboardInterrupt:
        return _failed(130, "stopped")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())      # nobody reads: say no more
    return 0


def main() -> NoReturn:
    """What the command `sensorium` calls."""
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(run(sys.argv[1:]))


def _used(argv: Sequence[str]) -> Sequence[str]:
    """What is left of a command line after each `--use FILE` at its head, whose file is run."""
    while list(argv[:1]) == ["--use"]:
        keywords.use("".join(argv[1:2]))
        argv = argv[2:]
    return argv


def _app(name: str, **settings: Any) -> App:
    return App(name, help_format="plaintext", help_epilogue=_examples(name), suppress_keyboard_interrupt=False,
               version_flags="--version" if "version" in settings else (), **settings)


def _examples(command: str) -> str:
    return "Examples:" + EXAMPLES[command].replace("\n        ", "\n  ")


def _failed(code: int, text: str) -> int:
    say(f"sensorium: {text}")
    return code


def _terminated(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)

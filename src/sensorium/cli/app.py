"""The command line: commands, their examples, and what a shell is told when one ends."""

import inspect
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, Literal, NoReturn

from cyclopts import App, CycloptsError

from sensorium import __version__
from sensorium.cli import recipe_options
from sensorium.cli.commands import (
    build,
    compare,
    convert_checkpoint,
    data,
    demo,
    doctor,
    evaluate,
    export,
    generate,
    index,
    interpolate,
    predict,
    search,
    summarize_run,
    summary,
    train,
)
from sensorium.cli.options import add_recipe_options
from sensorium.cli.output import log
from sensorium.errors import SensoriumError

DESCRIPTION = """One model over pictures, words and everything else about the same things.

Before a command, --use FILE.py runs a file of your own that adds a kind of column."""
COMPARE_HELP = inspect.cleandoc(str(compare.__doc__)).partition("\n\n")[2]
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
        sensorium data products.csv --type price=ignore --group product_id
        sensorium data emoji --json
        sensorium data scenes --source-option n=5000 --source-option size=64
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
        sensorium compare fusion products.csv --target price --fusion concat,sum,gated --folds 5
        sensorium compare clip photos/ --dim 128,256 --epochs 5 --out runs/widths""",
    "interpolate": """
        sensorium interpolate runs/photos
        sensorium interpolate runs/photos --reference old-photos/
        sensorium interpolate runs/photos --alpha 0.6 --out runs/photos-blend""",
    "evaluate": """
        sensorium evaluate runs/photos photos/
        sensorium evaluate runs/emoji emoji --split test_both --text caption_de""",
    "export": """
        sensorium export runs/photos --format hf --out photos-clip
        sensorium export runs/photos --format open_clip --out photos-open-clip
        sensorium export runs/houses --format onnx --out houses-onnx""",
    "index": """
        sensorium index runs/photos photos/
        sensorium index runs/photos new-photos/ --out new.index""",
    "search": """
        sensorium search runs/photos "a red bicycle"
        sensorium search runs/photos --image a.jpg -k 20 --out results.html
        sensorium search runs/photos "at night" --image a.jpg --json""",
    "generate": """
        sensorium generate runs/dalle "a red apple" -o apple.png
        sensorium generate runs/dalle "a red apple" "a blue fish" -n 6 --guidance-scale 3 --rerank runs/clip -o grid.png
        sensorium generate runs/captioner --image apple.png
        sensorium generate runs/vqa --image scene.png --question "what colour is the circle?"
        sensorium generate runs/gpt "once upon a time" --temperature 0.8 --seed 1""",
    "predict": """
        sensorium train fusion products.csv --target price --out runs/price
        sensorium predict runs/price new.csv -o priced.csv""",
    "summary": """
        sensorium summary clip --dim 1024 --depth 24
        sensorium summary clip --data photos/ --batch-size 512
        sensorium summary runs/photos
        sensorium summary openai/clip-vit-base-patch32""",
    "convert_checkpoint": """
        sensorium convert-checkpoint pytorch_model.bin
        sensorium convert-checkpoint last.ckpt --key ema_state_dict --out model.safetensors""",
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
    print(build_app(["train"]).generate_completion(shell=shell))


def build_app(argv: Sequence[str] = ()) -> App:
    """The whole of it, with recipes only where `argv` asks for them; one of the user's own becomes a command too."""
    app = _create_app("sensorium", version=__version__, help=DESCRIPTION)
    reader, shower = (
        _create_app("data", default_command=data),
        _create_app("summary", default_command=summarize_run),
    )
    trainer, comparer = (
        _create_app("train", help=train.__doc__),
        _create_app("compare", help=compare.__doc__),
    )
    reader.command(build, help_epilogue=_format_examples("build"))
    asked = argv[:2] if argv and argv[0] in ("train", "compare", "summary") else ()
    own = [
        recipe_options.parse_recipe(name) for name in asked[1:] if recipe_options.is_file_spec(name)
    ]
    for recipe in [*recipe_options.builtin_recipes(*asked[1:]).values(), *own] if asked else []:
        trainer.command(
            add_recipe_options(train, recipe, recipe.doc),
            name=recipe.name,
            help_epilogue=_format_examples("train"),
        )
        comparer.command(
            add_recipe_options(
                compare, recipe, f"{recipe.summary}\n\n{COMPARE_HELP}", multiple=True
            ),
            name=recipe.name,
            help_epilogue=_format_examples("compare"),
        )
        shower.command(
            add_recipe_options(summary, recipe, summary.__doc__),
            name=recipe.name,
            help_epilogue=_format_examples("summary"),
        )
    order = [
        reader,
        trainer,
        comparer,
        evaluate,
        interpolate,
        index,
        search,
        generate,
        predict,
        export,
        shower,
        convert_checkpoint,
        demo,
        doctor,
        completion,
    ]
    for place, command in enumerate(order):
        if isinstance(command, App):
            command.sort_key = place
            app.command(command)
        else:
            app.command(command, sort_key=place, help_epilogue=_format_examples(command.__name__))
    return app


def run(argv: Sequence[str]) -> int:
    """Run a command line; the exit status: 0 done, 1 could not be done, 2 was not understood."""
    try:
        argv = _run_user_files(argv)
        build_app(argv)(argv, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as e:
        return _report_error(
            2, f"{e} See: {' '.join(['sensorium', *(e.command_chain or ())])} --help"
        )
    except SensoriumError as e:
        if os.environ.get("SENSORIUM_DEBUG"):
            raise
        return _report_error(getattr(e, "code", 1), str(e))
    except KeyboardInterrupt:
        return _report_error(130, "stopped")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads: say no more
    return 0


def main() -> NoReturn:
    """What the command `sensorium` calls."""
    signal.signal(signal.SIGTERM, _handle_sigterm)
    sys.exit(run(sys.argv[1:]))


def _run_user_files(argv: Sequence[str]) -> Sequence[str]:
    """What is left of a command line after each `--use FILE` at its head, whose file is run."""
    while list(argv[:1]) == ["--use"]:
        recipe_options.run_user_file("".join(argv[1:2]))
        argv = argv[2:]
    return argv


def _create_app(name: str, **settings: Any) -> App:
    return App(
        name,
        help_format="plaintext",
        help_epilogue=_format_examples(name),
        suppress_keyboard_interrupt=False,
        version_flags="--version" if "version" in settings else (),
        **settings,
    )


def _format_examples(command: str) -> str:
    return "Examples:" + EXAMPLES[command].replace("\n        ", "\n  ")


def _report_error(exit_code: int, message: str) -> int:
    log(f"sensorium: {message}")
    return exit_code


def _handle_sigterm(signal_number: int, frame: object) -> NoReturn:
    sys.exit(128 + signal_number)

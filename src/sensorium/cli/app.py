"""The command line: how commands are put together, and the exit status of each outcome."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NoReturn

from cyclopts import App, CycloptsError

from sensorium import __version__
from sensorium.cli.commands.classify import classify
from sensorium.cli.commands.data import build, data
from sensorium.cli.commands.evaluate import evaluate, interpolate
from sensorium.cli.commands.export import convert_checkpoint, export
from sensorium.cli.commands.generate import generate
from sensorium.cli.commands.inspect import demo, doctor, summarize_recipe, summarize_source
from sensorium.cli.commands.predict import predict
from sensorium.cli.commands.search import index, search
from sensorium.cli.commands.train import compare, train
from sensorium.cli.examples import format_examples
from sensorium.cli.help_text import description, flatten, with_flat_help
from sensorium.cli.output import log
from sensorium.cli.recipe_options import add_recipe_options
from sensorium.cli.recipe_signature import (
    RecipeSignature,
    builtin_recipes,
    is_file_spec,
    parse_recipe,
    run_user_file,
)
from sensorium.errors import SensoriumError
from sensorium.io.terminal import SafeConsole, protect_output, raise_interrupt, safe_output

DESCRIPTION = """Train multimodal models on your own images, text, audio, time series and tables.

Before a command, --use FILE.py runs a Python file of yours that adds a column type."""
RECIPE_COMMANDS = ("train", "compare", "summary")
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print a completion script for a shell.

    Args:
        shell: Shell that the script is for.
    """
    print(build_app(["train"]).generate_completion(shell=shell))


def build_app(argv: Sequence[str] = ()) -> App:
    """Build the command line.

    Args:
        argv: arguments that it will parse. Recipes become commands only where these need them, and
            a recipe of the user's own (FILE:FUNCTION) becomes a command, too.
    """
    app = _create_app("sensorium", version=__version__, help=DESCRIPTION)
    datasets = _create_app("data", default_command=with_flat_help(data))
    datasets.command(with_flat_help(build), help_epilogue=format_examples("data build"))
    groups = {
        "train": _create_app("train", help=description(train)),
        "compare": _create_app("compare", help=description(compare)),
        "summary": _create_app("summary", default_command=with_flat_help(summarize_source)),
    }
    for recipe in _requested_recipes(argv):
        _add_recipe(groups, recipe)
    commands: list[App | Callable[..., None]] = [
        datasets,
        groups["train"],
        groups["compare"],
        evaluate,
        interpolate,
        index,
        search,
        generate,
        predict,
        classify,
        export,
        groups["summary"],
        convert_checkpoint,
        demo,
        doctor,
        completion,
    ]
    for position, command in enumerate(commands):
        if isinstance(command, App):
            command.sort_key = position
            app.command(command)
        else:
            examples = format_examples(command.__name__.replace("_", "-"))
            app.command(with_flat_help(command), sort_key=position, help_epilogue=examples)
    return app


def run(argv: Sequence[str]) -> int:
    """Run a command line.

    Args:
        argv: arguments, without the program's name.

    Returns:
        The exit status: 0 done, 1 failed, 2 not understood, 130 interrupted.
    """
    with safe_output():
        return _run(argv)


def _run(argv: Sequence[str]) -> int:
    """Run a command line, with protected output; return the exit status."""
    try:
        argv = _run_user_files(argv)
        build_app(argv)(argv, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as e:
        command = " ".join(["sensorium", *(e.command_chain or ())])
        return _report_error(EXIT_USAGE, f"{e} See: {command} --help")
    except SensoriumError as e:
        if os.environ.get("SENSORIUM_DEBUG"):
            raise
        return _report_error(getattr(e, "exit_code", EXIT_FAILED), str(e))
    except ImportError as e:
        if os.environ.get("SENSORIUM_DEBUG"):
            raise
        reason = next((line.strip() for line in str(e).splitlines() if line.strip()), "")
        return _report_error(
            EXIT_FAILED, f"A package does not load: {reason} Check it: sensorium doctor"
        )
    except KeyboardInterrupt:
        return _report_error(EXIT_INTERRUPTED, "Interrupted.")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader is gone
    return 0


def main() -> NoReturn:
    """Run the command line of this process; the entry point of the command `sensorium`."""
    protect_output()
    signal.signal(signal.SIGTERM, _exit_on_signal)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, _exit_on_signal)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, raise_interrupt)
    try:
        exit_code = run(sys.argv[1:])
    except KeyboardInterrupt:
        exit_code = EXIT_INTERRUPTED
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to interrupt
    sys.exit(exit_code)


def _requested_recipes(argv: Sequence[str]) -> Iterator[RecipeSignature]:
    """Yield the recipes that may be commands of this command line."""
    if not argv or argv[0] not in RECIPE_COMMANDS:
        return
    names = argv[1:2]
    yield from builtin_recipes(*names).values()
    for name in names:
        if is_file_spec(name):
            yield parse_recipe(name)


def _add_recipe(groups: dict[str, App], recipe: RecipeSignature) -> None:
    """Add a recipe to the commands that take one."""
    compare_help = description(compare).partition("\n\n")[2]
    commands = {
        "train": (train, flatten(recipe.doc)),
        "compare": (compare, f"{recipe.summary}\n\n{compare_help}"),
        "summary": (summarize_recipe, f"{recipe.summary}\n\n{description(summarize_recipe)}"),
    }
    for name, (command, text) in commands.items():
        recipe_command = add_recipe_options(command, recipe, text, multiple=name == "compare")
        examples = format_examples(name)
        groups[name].command(recipe_command, name=recipe.name, help_epilogue=examples)


def _run_user_files(argv: Sequence[str]) -> Sequence[str]:
    """Run each `--use FILE` at the head of a command line and return the rest."""
    while list(argv[:1]) == ["--use"]:
        run_user_file("".join(argv[1:2]))
        argv = argv[2:]
    return argv


def _create_app(name: str, **settings: Any) -> App:
    return App(
        name,
        help_format="plaintext",
        help_epilogue=format_examples(name),
        suppress_keyboard_interrupt=False,
        console=SafeConsole(),
        error_console=SafeConsole(stderr=True),
        version_flags="--version" if "version" in settings else (),
        **settings,
    )


def _report_error(exit_code: int, message: str) -> int:
    log(f"sensorium: {message}")
    return exit_code


def _exit_on_signal(signal_number: int, frame: object) -> NoReturn:  # noqa: ARG001 - a handler's signature
    sys.exit(128 + signal_number)

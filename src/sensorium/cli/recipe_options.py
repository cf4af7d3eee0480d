"""Command-line options made of a recipe's keywords."""

import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from cyclopts import Parameter, Token, convert

from sensorium.cli.recipe_signature import NAMES, Keyword, RecipeSignature
from sensorium.errors import SensoriumError

KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY
BuildOption = Callable[[Keyword, str], inspect.Parameter]


def add_recipe_options(
    command: Callable[..., None], recipe: RecipeSignature, doc: str | None, multiple: bool = False
) -> Callable[..., None]:
    """Return `command(recipe, ..., **overrides)` for one recipe, with its keywords as options.

    Args:
        command: function whose first parameter is the recipe and whose last is `**overrides`.
        recipe: signature of the recipe; its keywords and the fields of TrainingConfig are added.
        doc: help text of the new command.
        multiple: each option takes several values, passed on as a tuple (`sensorium compare`).

    Raises:
        SensoriumError: if a keyword of the recipe is already an option of the command.
    """

    def recipe_command(*args: Any, **options: Any) -> None:
        command(recipe.name, *args, **options)

    command_parameters = [
        parameter
        for parameter in inspect.signature(command).parameters.values()
        if parameter.name not in ("recipe", "overrides")
    ]
    clash = {p.name for p in command_parameters} & {k.name for k in recipe.model_options}
    if clash:
        raise SensoriumError(
            f"{recipe.name}: the keyword {min(clash)!r} is already an option of the command. "
            "Rename it."
        )
    build: BuildOption = _multi_value_option if multiple else _single_option
    options = [_build_option(k, "Model", build) for k in recipe.model_options]
    options += [build(k, "Training") for k in recipe.training_options]
    recipe_command.__doc__ = doc
    vars(recipe_command)["__signature__"] = inspect.Signature([*command_parameters, *options])
    return recipe_command


def _build_option(keyword: Keyword, group: str, build: BuildOption) -> inspect.Parameter:
    return _names_option(keyword, group) if keyword.type == NAMES else build(keyword, group)


def _single_option(keyword: Keyword, group: str) -> inspect.Parameter:
    computed = keyword.computed
    show = (lambda _: computed) if computed else keyword.default not in (None, "")
    parameter = Parameter(group=group, help=_help(keyword), show_default=show)
    return inspect.Parameter(
        keyword.name,
        KEYWORD_ONLY,
        default=keyword.default,
        annotation=Annotated[keyword.type, parameter],
    )


def _names_option(keyword: Keyword, group: str) -> inspect.Parameter:
    """Return an option that is repeated: one name is passed on as a str, several as a tuple."""

    def convert_names(_: Any, tokens: Sequence[Token]) -> Any:
        names = tuple(token.value for token in tokens)
        return names[0] if len(names) == 1 else names

    parameter = Parameter(
        group=group,
        help=_help(keyword),
        negative="",
        converter=convert_names,
        show_default=False,
    )
    return inspect.Parameter(
        keyword.name,
        KEYWORD_ONLY,
        default=keyword.default,
        annotation=Annotated[NAMES, parameter],
    )


def _multi_value_option(keyword: Keyword, group: str) -> inspect.Parameter:
    """Return an option with several values: comma-separated, or repeated for text."""
    is_text = keyword.type is str or str in getattr(keyword.type, "__args__", ())

    def convert_values(_: Any, tokens: Sequence[Token]) -> Any:
        parts = [
            token.evolve(value=part)
            for token in tokens
            for part in ([token.value] if is_text else token.value.split(","))
        ]
        return convert(tuple[keyword.type, ...], parts)

    default = keyword.computed
    if not default and keyword.default not in (None, ""):
        default = str(keyword.default)
    parameter = Parameter(
        group=group,
        help=_help(keyword),
        negative="",
        converter=convert_values,
        show_default=(lambda _: default) if default else False,
    )
    shown_type = str if keyword.type is bool else keyword.type
    return inspect.Parameter(
        keyword.name,
        KEYWORD_ONLY,
        default=(),
        annotation=Annotated[tuple[shown_type, ...], parameter],
    )


def _help(keyword: Keyword) -> str:
    """Return a keyword's help as a sentence."""
    text = keyword.doc.rstrip(".")
    return f"{text[:1].upper()}{text[1:]}." if text else ""

"""Commands about datasets: `data`, `data build`."""

from pathlib import Path
from typing import Annotated, Literal

from sensorium.cli.options import (
    DEFAULT_DATA_OPTIONS,
    FLAG,
    DataArgument,
    DataOptionsGroup,
    JsonOption,
    SplitOption,
    TestDataOption,
)
from sensorium.cli.output import emit, log


def data(
    path: DataArgument,
    /,
    *,
    split: SplitOption = None,
    test: TestDataOption = None,
    data_options: DataOptionsGroup = DEFAULT_DATA_OPTIONS,
    as_json: JsonOption = False,
) -> None:
    """Describe a dataset: column types and why, missing values, invalid rows, splits."""
    dataset = data_options.open(path, quiet=True, split=split, test=test)
    emit(dataset.describe(), as_json)


def build(
    name: Literal["emoji"],  # noqa: ARG001 - the only one so far
    /,
    *,
    out: Path,
    full: Annotated[bool, FLAG] = False,
    size: int = 64,
    packages: Path | None = None,
) -> None:
    """Build a dataset from packages of drawings and names.

    Args:
        name: Dataset to build.
        out: Output folder.
        full: Ten styles and 28 languages; two of the styles have share-alike licences.
        size: Side of an image in pixels.
        packages: Folder with the packages. Default: download them with npm.
    """
    from sensorium.data.bundled.emoji_build import build_emoji

    report = build_emoji(out, full=full, size=size, packages_folder=packages, log=log)
    print(report)

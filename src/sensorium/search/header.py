"""The header of an index folder, index.json."""

from dataclasses import asdict, dataclass
from pathlib import Path

from sensorium.errors import SensoriumError
from sensorium.io.json_files import read_object
from sensorium.search.journal import corruption_error

FORMAT_VERSION = 1
HEADER_FILE = "index.json"


@dataclass(frozen=True)
class IndexHeader:
    """The content of index.json.

    Attributes:
        dim: D.
        fingerprint: SHA-256 of the weights of the model that computed the vectors.
        run: folder of that model, relative to the index; "" if it has none.
        generation: number of the current generation.
        first_id: the smallest id that a new row may get.
        format: format version.
    """

    dim: int
    fingerprint: str
    run: str = ""
    generation: int = 1
    first_id: int = 0
    format: int = FORMAT_VERSION


def read_header(folder: Path) -> IndexHeader:
    """Read index.json and check its keys.

    Raises:
        SensoriumError: there is no index, or it is damaged or of another format version.
    """
    path = folder / HEADER_FILE
    try:
        values = read_object(path)
    except FileNotFoundError:
        raise SensoriumError(
            f"{folder} holds no index. Build one: sensorium index RUN DATA."
        ) from None
    example = asdict(IndexHeader(1, ""))
    types = {name: type(value) for name, value in example.items()}
    if {name: type(value) for name, value in values.items()} != types:
        raise corruption_error(path, f"it must have exactly the keys {', '.join(types)}")
    if values["format"] != FORMAT_VERSION:
        raise SensoriumError(
            f"{path} is of format {values['format']}; this version reads format {FORMAT_VERSION}. "
            "Build the index again."
        )
    return IndexHeader(**values)

"""The header of an index folder, index.json."""

from dataclasses import asdict, dataclass
from pathlib import Path

from sensorium.errors import SensoriumError
from sensorium.io.json_files import read_object
from sensorium.search.folder import HEADER_FILE, corruption_error

FORMAT_VERSION = 2


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
    if values.get("format") != FORMAT_VERSION:
        raise SensoriumError(
            f"{path} is of format {values.get('format')}; this version reads format "
            f"{FORMAT_VERSION}. Build the index again: sensorium index RUN DATA."
        )
    types = {name: type(value) for name, value in asdict(IndexHeader(1, "")).items()}
    if {name: type(value) for name, value in values.items()} != types:
        raise corruption_error(path, f"it must have exactly the keys {', '.join(types)}")
    return IndexHeader(**values)

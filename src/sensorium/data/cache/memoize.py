"""A tensor that is costly to work out and always the same: worked out once, read from disk ever after."""

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.text import Text
from torch import Tensor

from sensorium.data.cache import image_cache
from sensorium.errors import SensoriumError
from sensorium.io import atomic
from sensorium.io.tensors import read_tensors, tensor_writer


def memoize_tensor(
    folder_name: str, key: list[Any], compute: Callable[[], Tensor], status: str, console: Console
) -> Tensor:
    """What `make` gives, or gave before for the same `asked` (plain values, all that it depends on).

    folder_name: the folder it is kept in, beside the decoded pictures. doing: what is shown meanwhile. A file that is damaged
    is said, removed and made anew. Raises SensoriumError where the cache cannot be written.
    """
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    path = image_cache.image_cache_folder().with_name(folder_name) / f"{name}.safetensors"
    if path.exists():
        try:
            found = read_tensors(path)["made"]
            os.utime(path)
            return found
        except SensoriumError as e:
            console.print(
                f"{e}: working it out again", highlight=False, markup=False, soft_wrap=True
            )
            path.unlink(missing_ok=True)
    with console.status(Text(status)):
        made = compute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise image_cache.cache_access_error(path, e) from e
    atomic.write_file(path, tensor_writer({"made": made}))
    image_cache.prune_cache(path)
    return made

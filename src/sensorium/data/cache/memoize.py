"""Cache of tensors on disk: computed once, then read."""

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

from rich.text import Text
from torch import Tensor

from sensorium.data.cache import image_cache
from sensorium.errors import SensoriumError
from sensorium.io import atomic
from sensorium.io.tensors import read_tensors, tensor_writer
from sensorium.io.terminal import SafeConsole


def memoize_tensor(
    folder_name: str,
    key: list[Any],
    compute: Callable[[], Tensor],
    status: str,
    console: SafeConsole,
) -> Tensor:
    """Return what `compute` returns, from disk if it was computed before for the same key.

    A damaged file is reported, removed and computed again.

    Args:
        folder_name: the folder of the file, next to the decoded images.
        key: everything that the tensor depends on, as JSON values.
        compute: computes the tensor.
        status: the message shown meanwhile.
        console: where it is shown.

    Raises:
        SensoriumError: if the cache cannot be written.
    """
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    path = image_cache.image_cache_folder().with_name(folder_name) / f"{name}.safetensors"
    if path.exists():
        try:
            tensor = read_tensors(path)["tensor"]
            os.utime(path)
            return tensor
        except SensoriumError as e:
            console.print(f"{e} It is computed again.", soft_wrap=True)
            path.unlink(missing_ok=True)
    with console.status(Text(status)):
        tensor = compute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise image_cache.cache_access_error(path, e) from e
    atomic.write_file(path, tensor_writer({"tensor": tensor}))
    image_cache.prune_cache(path)
    return tensor

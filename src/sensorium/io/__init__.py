"""Files on disk: atomic writes, locks, tensor files, run configs, checkpoints.

Importing this package needs neither torch nor numpy: the worker process that reads untrusted
pickles imports it. `io.tensors` and `io.run_config`, which need torch, are imported by name.
"""

from sensorium.io.atomic import (
    fsync_dir,
    full_fsync,
    sweep,
    write_file,
    write_json,
)

__all__ = ["fsync_dir", "full_fsync", "sweep", "write_file", "write_json"]

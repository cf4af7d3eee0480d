"""Files on disk: atomic writes, tensor files, run configs, checkpoints."""

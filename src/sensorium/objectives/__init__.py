"""One file a loss, with the sampler that shares its equation."""

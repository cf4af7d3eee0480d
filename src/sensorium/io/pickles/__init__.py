"""Pickles of weights → safetensors, in a process of its own in which nothing of the file is executed."""

"""Convert pickled checkpoints to safetensors in a sandboxed process; nothing is executed."""

from sensorium.io.pickles.convert import ConversionResult, convert_checkpoint

__all__ = ["ConversionResult", "convert_checkpoint"]

"""Comparison of training settings."""

from sensorium.tuning.comparison import Comparison, RunResult, Setting

__all__ = ["Comparison", "RunResult", "Setting"]

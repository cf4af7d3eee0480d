"""Training objectives; a loss and the sampler that shares its equation are in one file."""

from sensorium.objectives.autoregressive import (
    BeamConfig,
    NextTokenLoss,
    SamplingConfig,
    beam_search,
    generate,
)
from sensorium.objectives.contrastive import CONTRASTIVE_LOSSES, ContrastiveLoss
from sensorium.objectives.diffusion import (
    CosineSchedule,
    DenoisingLoss,
    DiffusionProcess,
    DiscreteSchedule,
    FlowSchedule,
)
from sensorium.objectives.reconstruction import PIXEL_LOSSES, ReconstructionLoss
from sensorium.objectives.samplers import Guidance, SamplerConfig, Threshold, invert, sample
from sensorium.objectives.supervised import SupervisedLoss, Target, build_target

__all__ = [
    "CONTRASTIVE_LOSSES",
    "PIXEL_LOSSES",
    "BeamConfig",
    "ContrastiveLoss",
    "CosineSchedule",
    "DenoisingLoss",
    "DiffusionProcess",
    "DiscreteSchedule",
    "FlowSchedule",
    "Guidance",
    "NextTokenLoss",
    "ReconstructionLoss",
    "SamplerConfig",
    "SamplingConfig",
    "SupervisedLoss",
    "Target",
    "Threshold",
    "beam_search",
    "build_target",
    "generate",
    "invert",
    "sample",
]

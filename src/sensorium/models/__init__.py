"""Models and model components: encoders, decoders, predictors and image tokenizers."""

from sensorium.models.boosted_trees import Trees
from sensorium.models.calibration import Calibration, Gaussian
from sensorium.models.decoder import Decoder, OutputPart
from sensorium.models.handcrafted_features import HandcraftedFeatures
from sensorium.models.image_tokenizer import ImageTokenizer, Reconstruction
from sensorium.models.image_tokens import ImageTokenEmbedding
from sensorium.models.int8 import Int8Embedding, Int8Linear, quantize_int8
from sensorium.models.lora import (
    TRAIN_MODES,
    FrozenEncoder,
    LoRA,
    add_lora,
    merge_lora,
    set_trainable,
)
from sensorium.models.multimodal_predictor import ColumnEncoder, Head, MultimodalPredictor
from sensorium.models.towers import Encoder, InputEmbedding, Tower, TowerOutput, Towers, freeze

__all__ = [
    "TRAIN_MODES",
    "Calibration",
    "ColumnEncoder",
    "Decoder",
    "Encoder",
    "FrozenEncoder",
    "Gaussian",
    "HandcraftedFeatures",
    "Head",
    "ImageTokenEmbedding",
    "ImageTokenizer",
    "InputEmbedding",
    "Int8Embedding",
    "Int8Linear",
    "LoRA",
    "MultimodalPredictor",
    "OutputPart",
    "Reconstruction",
    "Tower",
    "TowerOutput",
    "Towers",
    "Trees",
    "add_lora",
    "freeze",
    "merge_lora",
    "quantize_int8",
    "set_trainable",
]

"""Inference: the verbs embed, generate and predict, on raw values."""

from sensorium.inference.base import UnsupportedVerb, VerbModel, eval_mode, load_value
from sensorium.inference.embed import Embedder
from sensorium.inference.generate_image import EmbeddingModel, ImageGenerator, rerank_images
from sensorium.inference.generate_text import TextGenerator
from sensorium.inference.predict import Prediction, Predictor, decode_prediction

__all__ = [
    "Embedder",
    "EmbeddingModel",
    "ImageGenerator",
    "Prediction",
    "Predictor",
    "TextGenerator",
    "UnsupportedVerb",
    "VerbModel",
    "decode_prediction",
    "eval_mode",
    "load_value",
    "rerank_images",
]

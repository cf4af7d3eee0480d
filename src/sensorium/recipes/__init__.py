"""Recipes: one file per model family, each a function of a schema and keywords."""

from sensorium.evaluation.spec import EvaluationSpec, Predictions, ValidationResult
from sensorium.recipes.captioner import captioner
from sensorium.recipes.clip import clip
from sensorium.recipes.dalle import dalle
from sensorium.recipes.dalle2 import dalle2, dalle2_prior
from sensorium.recipes.finetune import finetune
from sensorium.recipes.fusion import fusion
from sensorium.recipes.gan import gan
from sensorium.recipes.gpt import gpt
from sensorium.recipes.image_tokenizer import image_tokenizer
from sensorium.recipes.imagen import imagen
from sensorium.recipes.lit import lit
from sensorium.recipes.recipe import DataSpec, Hooks, InvalidKeywordError, Recipe, RecipeFunction
from sensorium.recipes.training_config import TrainingConfig, training_defaults

RECIPES = {
    "captioner": captioner,
    "clip": clip,
    "image_tokenizer": image_tokenizer,
    "imagen": imagen,
    "dalle": dalle,
    "dalle2_prior": dalle2_prior,
    "dalle2": dalle2,
    "finetune": finetune,
    "fusion": fusion,
    "gan": gan,
    "gpt": gpt,
    "lit": lit,
}

__all__ = [
    "RECIPES",
    "DataSpec",
    "EvaluationSpec",
    "Hooks",
    "InvalidKeywordError",
    "Predictions",
    "Recipe",
    "RecipeFunction",
    "TrainingConfig",
    "ValidationResult",
    "captioner",
    "clip",
    "dalle",
    "dalle2",
    "dalle2_prior",
    "finetune",
    "fusion",
    "gan",
    "gpt",
    "image_tokenizer",
    "imagen",
    "lit",
    "training_defaults",
]

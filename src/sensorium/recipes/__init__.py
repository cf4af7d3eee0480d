"""One file a family: a function of a schema and keywords that names its parts."""
from sensorium.recipes.clip import clip as clip
from sensorium.recipes.finetune import finetune as finetune

RECIPES = {make.__name__: make for make in (
    clip,
    finetune,
)}

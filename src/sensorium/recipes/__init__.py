"""One file a family: a function of a schema and keywords that names its parts."""
from sensorium.recipes.clip import clip as clip

RECIPES = {make.__name__: make for make in (clip,)}

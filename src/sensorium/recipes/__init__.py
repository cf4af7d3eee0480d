"""One file a family: a function of a schema and keywords that names its parts."""

from sensorium.recipes.captioner import captioner as captioner
from sensorium.recipes.clip import clip as clip
from sensorium.recipes.clip import clip_small as clip_small
from sensorium.recipes.dalle import dalle as dalle
from sensorium.recipes.finetune import finetune as finetune
from sensorium.recipes.fusion import fusion as fusion
from sensorium.recipes.gpt import gpt as gpt
from sensorium.recipes.image_tokenizer import image_tokenizer as image_tokenizer
from sensorium.recipes.lit import lit as lit

RECIPES = {
    make.__name__: make
    for make in (
        captioner,
        clip,
        clip_small,
        image_tokenizer,
        dalle,
        finetune,
        fusion,
        gpt,
        lit,
    )
}

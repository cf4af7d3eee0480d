"""Other people's trained weights: files, names, tokenizers; one file a family."""
from sensorium.published.clip import CLIP
from sensorium.published.open_clip import OPEN_CLIP
from sensorium.published.published import Published

PUBLISHED: dict[str, Published] = {family.name: family for family in (CLIP, OPEN_CLIP)}

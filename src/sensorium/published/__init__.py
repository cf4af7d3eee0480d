"""Other people's trained weights: files, names, tokenizers; one file a family."""
from sensorium.published.published import Published

PUBLISHED: dict[str, Published] = {family.name: family for family in ()}

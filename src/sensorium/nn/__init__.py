"""Building blocks: tokens, attention, transformers, fusion and the layers under them."""

"""One file a sense: settings, load, augment, embed (to Tokens)."""

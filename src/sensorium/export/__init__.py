"""The way out: what was trained here, as others load it."""

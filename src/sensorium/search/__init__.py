"""Vector search over embedded datasets."""

"""Caches of prepared data: decoded images, tokens, embeddings."""

"""Prepared data, cached on disk: decoded images, series, tokens and embeddings."""

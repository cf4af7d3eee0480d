"""Raw files in, batches out."""

"""What a model may be asked, on raw values."""

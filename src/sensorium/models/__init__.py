"""Models made of those blocks."""

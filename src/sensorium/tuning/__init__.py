"""Comparison of training configurations."""

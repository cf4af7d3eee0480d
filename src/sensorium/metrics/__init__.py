"""Metrics of every task, as functions of arrays."""

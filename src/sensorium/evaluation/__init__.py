"""Evaluation reports, baselines and plots of every task."""

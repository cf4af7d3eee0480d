"""Bundled datasets: emoji and procedurally drawn scenes."""

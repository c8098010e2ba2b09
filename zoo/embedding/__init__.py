"""Turns images and whole cohorts into features."""

from zoo.embedding.embedder import embed

__all__ = [
    "embed",
]

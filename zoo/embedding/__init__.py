"""Images and whole cohorts become features."""

from zoo.embedding.embedder import embed

__all__ = [
    "embed",
]

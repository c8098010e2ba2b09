"""Turns images and whole cohorts into features."""

from zoo.embedding.cases import Cases, find_cases, read_list
from zoo.embedding.cohort import ENGINES, Outcome, cases_at, embed, embed_all, embed_cohort, workers_for
from zoo.embedding.embedder import PRECISIONS, Embedder
from zoo.embedding.trial import Trial, try_cases

__all__ = [
    "ENGINES",
    "PRECISIONS",
    "Cases",
    "Embedder",
    "Outcome",
    "Trial",
    "cases_at",
    "embed",
    "embed_all",
    "embed_cohort",
    "find_cases",
    "read_list",
    "try_cases",
    "workers_for",
]

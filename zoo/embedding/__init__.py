"""Turns images and whole cohorts into features."""

from zoo.embedding.cases import Cases, find_cases, read_list
from zoo.embedding.cohort import cases_at, embed, embed_all, embed_cohort
from zoo.embedding.dataset import read_facts
from zoo.embedding.embedder import Embedder
from zoo.embedding.memory import keep_freed_memory
from zoo.embedding.reading import workers_for
from zoo.embedding.reserving import holding_finished
from zoo.embedding.trial import left_in, try_cases

__all__ = [
    "Cases",
    "Embedder",
    "cases_at",
    "embed",
    "embed_all",
    "embed_cohort",
    "find_cases",
    "holding_finished",
    "keep_freed_memory",
    "left_in",
    "read_facts",
    "read_list",
    "try_cases",
    "workers_for",
]

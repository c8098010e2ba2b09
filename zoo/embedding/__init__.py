"""Turns images and whole cohorts into features."""

from zoo.embedding.cases import Cases, find_cases, read_list
from zoo.embedding.cohort import embed, embed_all, embed_cohort, embed_each
from zoo.embedding.dataset import read_facts
from zoo.embedding.embedder import Embedder, reason
from zoo.embedding.heads import check_head, head_outputs
from zoo.embedding.memory import keep_freed_memory
from zoo.embedding.parts import is_utf8
from zoo.embedding.reading import workers_for
from zoo.embedding.reserving import holding_finished
from zoo.embedding.trial import left_in, try_cases

__all__ = [
    "Cases",
    "Embedder",
    "check_head",
    "embed",
    "embed_all",
    "embed_cohort",
    "embed_each",
    "find_cases",
    "head_outputs",
    "holding_finished",
    "is_utf8",
    "keep_freed_memory",
    "left_in",
    "read_facts",
    "read_list",
    "reason",
    "try_cases",
    "workers_for",
]

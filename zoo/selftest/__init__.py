"""Tells whether networks compute here what they computed where their values were stored, stage by stage."""

from zoo.selftest.cases import VALUES, Case, cases_due, cases_of, stored_cases
from zoo.selftest.running import Outcome, compare, measure_case, run_case, versions
from zoo.selftest.stages import Stage

__all__ = [
    "VALUES",
    "Case",
    "Outcome",
    "Stage",
    "cases_due",
    "cases_of",
    "compare",
    "measure_case",
    "run_case",
    "stored_cases",
    "versions",
]

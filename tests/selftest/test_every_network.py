"""Every network, and the weights that come with the package, compute what is stored."""

import pytest

from zoo.selftest import run_case, stored_cases

LONG = ("voco-swinunetr-h",)
"""Its 1.2 G parameters take half a minute of one core: `zoo selftest voco-swinunetr-h` runs it."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=f"{case.name}, {case.what}") for case in stored_cases() if case.model not in LONG],
)
def test_it_computes_what_is_stored(case):
    outcome = run_case(case)
    assert outcome.ok, outcome.problem or outcome.first

"""Every network, and the weights that come with the package, compute what is stored."""

import pytest

from zoo.selftest import run_case, stored_cases

LONG = ("voco-swinunetr-l", "voco-swinunetr-h")
"""They are the B network with more channels, whose encoders run here alone. They take six seconds and half a minute of
one core: `zoo selftest voco-swinunetr-l voco-swinunetr-h` runs them."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=f"{case.name}, {case.what}") for case in stored_cases() if case.model not in LONG],
)
def test_it_computes_what_is_stored(case):
    outcome = run_case(case)
    assert outcome.ok, outcome.problem or outcome.first

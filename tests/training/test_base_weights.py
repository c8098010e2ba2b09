"""Weights that a run begins with, whose images were made otherwise than the run's."""

from dataclasses import fields, replace

import pytest

from zoo.entry import Preprocessing
from zoo.registry import entries
from zoo.training.base_weights import NOT_COMPARED, warn_of_other_input


class Weights:
    """Weights of a model that learnt from images of another contract."""

    def __init__(self, contract, **changes):
        self.name, self.contract = "theirs", replace(contract, **changes)

    def input(self, model):
        return self.contract, True


@pytest.mark.parametrize("field", [field.name for field in fields(Preprocessing)])
def test_each_field_of_the_input_contract_is_compared(caplog, field):
    """Of every entry; one that is forgotten lets a run go on with other images without a word."""
    for name, entry in entries().items():
        caplog.clear()
        warn_of_other_input(Weights(entry.preprocessing), name, {})
        assert not caplog.messages, name
        warn_of_other_input(Weights(entry.preprocessing, **{field: "another"}), name, {})
        (said,) = caplog.messages or [""]
        assert (f"theirs was trained with {field} another, but this run has {field} " in said) == (
            field not in NOT_COMPARED
        ), name


def test_what_is_not_compared_is_a_field():
    """A field that was renamed would be left out under its old name, and its new one compared without intent."""
    assert set(NOT_COMPARED) <= {field.name for field in fields(Preprocessing)}

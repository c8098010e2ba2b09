"""The report as JSON: what is read back is what was written, and nothing else is taken for it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from probed import probed

from zoo.errors import InputContractError
from zoo.evaluation.report import ProbeReport

SCHEMA = Draft202012Validator(json.loads((Path(__file__).parent / "report.schema.json").read_text()))


@pytest.fixture(scope="module")
def report():
    return probed(kind="binary")


def test_json_and_back(report, tmp_path):
    """Nested facts too, as the dataclasses have them."""
    report.write(tmp_path / "report.json")
    assert ProbeReport.read(tmp_path / "report.json") == report


def test_names_that_are_no_utf8_are_written(report, tmp_path):
    """A folder of features whose name another system wrote, as Python has its bytes: they come back as they were."""
    odd = replace(report, best="caf\udce9 ²")
    odd.write(tmp_path / "report.json")
    assert ProbeReport.read(tmp_path / "report.json") == odd


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["binary", "classes", "numbers"])
def test_the_schema_holds(kind):
    """What other programs rely on, for each kind of target."""
    assert list(SCHEMA.iter_errors(json.loads(probed(kind=kind).to_json()))) == []


def test_the_schema_has_every_field(report):
    """A field that is added and not described would be one that nobody can rely on."""
    found = json.loads(report.to_json())
    definitions = SCHEMA.schema["$defs"]
    assert set(found) == set(definitions["report"]["properties"])
    assert set(found["encoders"][0]) == set(definitions["result"]["properties"])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1}'])
def test_other_files_are_refused(text):
    """With a word, not with a traceback."""
    with pytest.raises(InputContractError, match=r"report"):
        ProbeReport.from_json(text)

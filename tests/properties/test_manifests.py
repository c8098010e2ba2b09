"""A manifest that somebody wrote by hand is read or refused, never anything else."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import OptionError
from zoo.record import DIGESTS, STATES, WeightsFile, read_manifest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
DIGIT = st.sampled_from("0123456789abcdefABCDEF")


def digest(digits):
    return st.none() | st.text(DIGIT, min_size=digits, max_size=digits)


RECORD = st.fixed_dictionaries(
    {
        "tag": st.text(min_size=1, max_size=5),
        "models": st.lists(st.text(max_size=5), max_size=3),
        "state": st.sampled_from(STATES),
        "sources": st.lists(st.text(max_size=5).map("https://host/{}".format), max_size=3),
        "bytes": st.none() | st.integers(0),
        "sha256": digest(64),
    },
    optional={
        "md5": digest(32),
        "git_blob": digest(40),
        "default": st.booleans(),
        "notes": st.text(max_size=5),
        "licences": st.dictionaries(st.sampled_from(["code", "weights", "data"]), JSON, max_size=3),
    },
)
DIGITS = st.sampled_from(sorted(DIGESTS.values())).map(lambda digits: 10 ** (digits - 1))
"""Numbers of as many digits as a digest has."""
FIELDS = sorted(WeightsFile.__dataclass_fields__.keys() - {"base"})


def read(*weights):
    """Read a manifest of these records."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.json"
        path.write_text(json.dumps({"schema": 1, "weights": weights}), "utf-8")
        return read_manifest(path)


@pytest.mark.slow
@given(record=RECORD)
def test_a_record_is_read_as_it_is_written(record):
    """Digests in small letters, lists as tuples, all else as it stands."""
    (found,) = read(record)
    assert found.digests == {kind: record[kind].lower() for kind in DIGESTS if record.get(kind)}
    assert (found.models, found.sources) == (tuple(record["models"]), tuple(record["sources"]))
    assert found.loads_without_tag == (record["state"] == "hosted" and record.get("default", True))
    for name in record.keys() - {*DIGESTS, "models", "sources", "licences"}:
        assert getattr(found, name) == record[name]


@pytest.mark.parametrize("field", [*FIELDS, "surprise"])
@settings(max_examples=20)
@given(record=RECORD, value=JSON | st.integers() | DIGITS)
def test_any_value_in_any_field_is_read_or_refused(field, record, value):
    """By the zoo's own error, which names the manifest, not by one of Python's."""
    try:
        read(record | {field: value})
    except OptionError as error:
        refusal = str(error)
    else:
        refusal = ""
    assert "manifest.json" in refusal or (field in FIELDS and not refusal)


@given(content=JSON)
def test_anything_else_in_its_place_is_refused(content):
    """Whatever JSON may hold where a record is due."""
    with pytest.raises(OptionError, match=r"manifest\.json"):
        read(content)


@given(record=RECORD, left_out=st.sampled_from(["tag", "models", "state", "sources", "bytes", "sha256"]))
def test_a_record_without_what_it_needs_is_refused_by_name(record, left_out):
    """Which field it was stands in the message."""
    del record[left_out]
    with pytest.raises(OptionError, match=left_out):
        read(record)

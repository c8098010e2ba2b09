"""What a record that a recipe prints must become before it may stand in the manifest that ships with the package."""

import json
from pathlib import Path

import jsonschema

SCHEMA = json.loads((Path(__file__).parent / "manifest.schema.json").read_text("utf-8"))
LICENCE = {"licence": "CC0-1.0", "commercial": "yes", "redistribute": "yes"}
OWNERS = {
    "writer": "any",
    "citation": "any",
    "licences": {"code": LICENCE, "weights": LICENCE, "data": LICENCE},
    "provenance": {"repository": "any", "commit": "any", "command": "any", "data": "any"},
}
"""What a manifest of ours wants to know of weights and no program can say."""


def check_record(record):
    """Hold a printed record against the schema, once its owner has filled in what is his."""
    complete = record | OWNERS | {"provenance": OWNERS["provenance"] | record["provenance"]}
    jsonschema.validate({"schema": 1, "weights": [complete]}, SCHEMA)

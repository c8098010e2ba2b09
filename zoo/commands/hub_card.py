"""The page of a model that `zoo export --to-hub` puts beside its file: what it is, from where, and how to load it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.commands.printing import fact_lines, input_facts
from zoo.entry import Preprocessing
from zoo.fetching import hash_file
from zoo.files import read_text
from zoo.messages import printable
from zoo.policy import began_at_random
from zoo.registry import get_entry

log = logging.getLogger("zoo")

_OPEN = ("Apache-2.0", "MIT", "BSD-3-Clause", "CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0")
"""Licences that the hub has an identifier for, the strictest last."""
_LAYERS = ("code", "weights", "data")
_LEARNT = {task: f"trained to {task}" for task in ("classify", "regress", "segment")} | {"pretrain": "pre-trained"}
_RESULTS = ("cases", "test", "random", "pair", "warnings")
"""What a page takes of `results.json`: its arguments have paths of the machine that it was trained on."""


def card_of(repo: str, facts: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """Return the page as Markdown, with the hub's own fields before it.

    Args:
        repo: `owner/name`.
        facts: What the file says of itself, from `facts_of`.
        results: From `results_beside`; empty where there are none.
    """
    from huggingface_hub import ModelCard, ModelCardData

    entry = get_entry(facts["model"])
    owner, name = repo.split("/")
    licences = licences_of(facts["base"])
    data = ModelCardData(
        license=hub_licence(licences), library_name="medssl-zoo", tags=["medical", facts["model"], *entry.modalities]
    )
    lines = [
        f"# {name}",
        f"A `{facts['model']}` ({entry.summary}) that was {_LEARNT.get(facts['task'], 'trained')} with medssl-zoo, and "
        f"put here by {owner}. These are not weights of the model's authors: those that the training began with are "
        "named below.",
        *_load(repo, facts),
        "## What it says",
        *_list([str(each["name"]) for each in facts["outputs"]] or ["pooled features, or maps"]),
        "## What it takes",
        *_list(fact_lines(input_facts(Preprocessing(**facts["input"])))),
        "## What it began with",
        *_list(fact_lines({key: value for key, value in facts["base"].items() if key != "licences"})),
        "## Licences",
        *_licences(facts["base"], licences),
    ]
    if results:
        lines += ["## Results", "As the run that trained it measured them, on its own data:"]
        lines.append("\n".join(["```", *fact_lines(results), "```"]))
    if facts["command"]:
        lines += ["## Training", f"`{printable(facts['command'])}`, zoo {printable(facts['version'] or '?')}"]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(lines) + "\n"))


def _licences(base: Mapping[str, Any], licences: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if began_at_random(base):
        return ["It began with random weights: the terms of the data that it was trained on alone count."]
    return [
        "Those of the code, the weights and the training data that it began with. What it learnt from since may have "
        "its own.",
        *_list([_in_words(layer, licences[layer]) for layer in _LAYERS if layer in licences] or ["none is stated"]),
    ]


def licences_of(base: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The licences by layer that the facts of weights state, whoever wrote them; malformed ones are left out."""
    stated = base.get("licences")
    found = stated if isinstance(stated, Mapping) else {}
    return {layer: found[layer] for layer in _LAYERS if isinstance(found.get(layer), Mapping)}


def hub_licence(licences: Mapping[str, Mapping[str, Any]]) -> str:
    """The hub's identifier of the strictest licence; `other` where one is none that the hub knows, or is not stated."""
    said = [str(licences.get(layer, {}).get("licence", "")) for layer in _LAYERS]
    return max(said, key=_OPEN.index).lower() if all(each in _OPEN for each in said) else "other"


def results_beside(file: Path) -> dict[str, Any]:
    """What `results.json` in the folder of a file says of the test, where it is of this very file; else empty.

    A run writes the digests of its weights into it. One that has another digest, or none, is left out with a warning.
    """
    beside = file.parent / "results.json"
    if not beside.exists():
        return {}
    try:
        found = json.loads(read_text(beside))
    except (OSError, ValueError, RecursionError):
        found = None
    weights = found.get("weights") if isinstance(found, dict) else None
    if isinstance(weights, dict) and hash_file(file) in weights.values():
        return {key: found[key] for key in _RESULTS if key in found}
    log.warning("%s does not name the sha256 of %s under `weights`: its results are left out", beside, file.name)
    return {}


def _load(repo: str, facts: Mapping[str, Any]) -> list[str]:
    address = f"hf://{repo}"
    calls = [
        f'model = zoo.load_model("{address}")  # @COMMIT behind the name keeps to one commit',
        f'transform = zoo.load_transform("{address}")',
    ]
    if facts["kind"]:
        calls.append(f'predict = zoo.load_predictor("{address}")')
    return ["## How to load it", "\n".join(["```python", "import zoo", "", *calls, "```"])]


def _in_words(layer: str, licence: Mapping[str, Any]) -> str:
    note = f" ({licence['note']})" if licence.get("note") else ""
    return (
        f"{layer}: {licence.get('licence', 'not stated')}; commercial use: {licence.get('commercial', 'unknown')}, "
        f"redistribution: {licence.get('redistribute', 'unknown')}{note}"
    )


def _list(lines: list[str]) -> list[str]:
    """A list of Markdown as one block; a file's text can end neither the list nor its item."""
    return ["\n".join(f"- {printable(line)}" for line in lines)]

"""What `zoo info FILE` shows: the header of a file that a run saved, in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zoo.commands.printing import fact_lines, input_facts
from zoo.errors import CheckpointFormatError
from zoo.fetching import is_hub
from zoo.formats import is_of_recipe, open_checkpoint, told
from zoo.loading import input_of
from zoo.tasks.outputs import Outputs, read_outputs
from zoo.tasks.saved import WEIGHTS, find_saved

_KINDS = {
    "labels": "labels that may hold together or not at all",
    "classes": "classes of which one holds",
    "numbers": "numbers of the table",
    "voxels": "a class for each voxel or pixel",
}


_INPUT_FROM = {
    "file": "this file, of the images that it was trained on",
    "model": "the model's own: this file does not say what it was trained on",
}


def is_saved(name: str) -> bool:
    """Whether what stands in the place of a model's name is a file, there or not, a run's folder, or an address."""
    is_file = name.endswith((".safetensors", ".pt")) or Path(name).is_file()
    return is_hub(name) or is_file or (Path(name) / WEIGHTS).is_file()


def facts_of(path: str | Path, cache_dir: str | Path | None = None) -> dict[str, Any]:
    """Return what a file says of itself, by key, for JSON.

    Args:
        path: A file that a run saved, or the folder of `zoo finetune`.
        cache_dir: Cache folder; default `$ZOO_HOME`.

    Raises:
        CheckpointFormatError: It cannot be read, has no header of a run, or says what cannot be.
    """
    file = find_saved(path, cache_dir)
    header = open_checkpoint(file).metadata
    if not is_of_recipe(header):
        raise CheckpointFormatError(
            f"{file} has no header that a run of the zoo wrote, which would say its task and input: `zoo inspect "
            f"{file}` shows what is in it"
        )
    kind, outputs = None, [{"name": name} for name in map(str, told(header, "classes", list, file))]
    if "outputs" in header:
        found, names = read_outputs(header, file)
        kind, outputs = found.kind, _outputs(found, names)
    return {
        "file": str(file),
        "model": header["model"],
        "task": header.get("task", ""),
        "kind": kind,
        "outputs": outputs,
        "input": asdict(input_of(header["model"], file, cache_dir)),
        "input_from": "file" if told(header, "input", dict, file) else "model",
        **({"reading": reading} if (reading := told(header, "reading", dict, file)) else {}),
        "options": told(header, "options", dict, file),
        "base": told(header, "base", dict, file),
        "recipe": header["recipe"],
        "command": header.get("command", ""),
        "version": header.get("version"),
    }


def page_of(facts: Mapping[str, Any]) -> list[str]:
    """Return the facts as lines for a reader; what the file says is escaped."""
    from zoo.entry import Preprocessing

    kind = facts["kind"]
    shown: dict[str, Any] = dict(facts) | {
        "task": f"{facts['task']}: {_KINDS[kind]}" if kind else facts["task"],
        "outputs": [_in_words(each, kind) for each in facts["outputs"]],
        "input": {"from": _INPUT_FROM[facts["input_from"]], **input_facts(Preprocessing(**facts["input"]))},
        "version": f"zoo {facts['version']}" if facts["version"] else None,
    }
    del shown["kind"], shown["input_from"]
    if not kind:
        shown["predict"] = "no: it does not say how its outputs become answers, as files of `zoo finetune` do"
    width = max(map(len, shown))
    return [
        f"{key if i == 0 else '':<{width}}  {line}"
        for key, value in shown.items()
        for i, line in enumerate(fact_lines(value))
    ]


def _outputs(found: Outputs, names: Sequence[str]) -> list[dict[str, Any]]:
    """Each output with what is known of it."""
    each: list[dict[str, Any]] = [{"name": name} for name in names]
    thresholds: Sequence[float | None] = found.thresholds
    if found.kind == "classes" and thresholds:
        thresholds = (None, *found.thresholds)
    for key, values in (("threshold", thresholds), ("mean", found.means), ("deviation", found.deviations)):
        for output, value in zip(each, values or [None] * len(each), strict=True):
            if value is not None:
                output[key] = value
    return each


def _in_words(output: Mapping[str, Any], kind: str | None) -> str:
    if "threshold" in output:
        return f"{output['name']}: from probability {output['threshold']:.4g} on"
    if kind == "numbers":
        return f"{output['name']}: mean {output['mean']:.4g}, deviation {output['deviation']:.4g} in training"
    return str(output["name"])

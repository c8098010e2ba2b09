"""What the recipes' tests look at in all that a run saves: its header, and whose weights an export has."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from zoo.formats.header import KEYS
from zoo.formats.opening import open_checkpoint
from zoo.training.saving import read_state, write_state


class _Begun(Exception):
    """Ends a run where its first step would be."""


def begun(recipe, argv, monkeypatch):
    """A recipe's method before its first step, by the names of its tensors, and the base in the header of its files."""
    found = {}

    def fit(method, *_, header, **__):
        found.update(method.state_dict())
        found["base"] = json.loads(header["base"])
        raise _Begun

    with monkeypatch.context() as patched:
        patched.setattr(recipe, "fit", fit)
        with pytest.raises(_Begun):
            recipe.main(argv)
    return found, found.pop("base")


def are_equal(state, other, prefix, behind=""):
    """Whether all tensors behind a prefix of a state dict are those of another one, and there are any."""
    mine = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    assert mine
    return all(torch.equal(value, other[f"{behind}{name}"]) for name, value in mine.items())


def header_of(file):
    """The header of a file by the libraries alone, JSON read."""
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            texts = opened.metadata()
    else:
        texts = torch.load(file, weights_only=True)["zoo"]
    assert texts == open_checkpoint(file).metadata
    assert set(texts) - {"outputs"} == set(KEYS) - {"outputs"}  # whose thresholds are not each recipe's
    lists = {key: json.loads(texts[key]) for key in ("input", "options", "classes", "base")}
    return texts | lists


def without_header(file, target):
    """The file as earlier versions of the recipes wrote it."""
    content = torch.load(file, weights_only=True)
    del content["zoo"]
    torch.save(content, target)
    return target


def copy_of(run, target):
    """A finished run in another folder, which goes on there with `--resume` to export what it has saved."""
    target.mkdir()
    for name in ("args.json", "log.jsonl", "best.pt", "last.pt"):
        shutil.copyfile(run / name, target / name)
    return target


def mark(file):
    """Add 1 to the floating-point tensors of `best.pt` or `last.pt`, so that whatever is made of it can be told.

    A resumed run makes `best.pt` again where the last epoch is the best: `last.pt` says then that it is another.
    """
    content = read_state(file)
    model = {n: value + 1 if value.is_floating_point() else value for n, value in content["model"].items()}
    write_state(file, content | {"model": model})
    last = file.with_name("last.pt")
    content = read_state(last)
    write_state(last, content | {"metrics": content["metrics"] | {"epoch": -1}})


def comes_from(export, file, prefix):
    """Whether an export holds the tensors that `best.pt` or `last.pt` has behind a prefix, and no others."""
    trained = torch.load(file, weights_only=True)["model"]
    theirs = {name.removeprefix(prefix): value for name, value in trained.items() if name.startswith(prefix)}
    found = load_file(export)
    assert set(found) <= set(theirs)
    return all(torch.equal(value, theirs[name]) for name, value in found.items())

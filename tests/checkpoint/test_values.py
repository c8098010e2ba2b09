"""Weights with NaN or infinity: refused wherever values are read, named, and not looked for twice."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file

import zoo
import zoo.loading
from zoo.checkpoint.values import faults
from zoo.commands.importing import import_weights
from zoo.errors import CheckpointFormatError
from zoo.fetching.cache import stamp_path
from zoo.formats.floats import is_finite
from zoo.formats.opening import open_checkpoint

MODEL = "caid-resnet50"


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 5, 11])
def test_one_value_is_found(kind, bad, place):
    """Of any type, at any place, in a view; and none where there is none."""
    values = torch.arange(12.0)
    values[place] = bad
    for view in (values.to(kind), values.to(kind).reshape(3, 4).T):
        assert not is_finite(view)
        assert faults([("a", view), ("b.num_batches_tracked", view)]) == {"a": "NaN or infinite values"}
    assert is_finite(torch.arange(12.0).to(kind))
    assert is_finite(torch.zeros(0, dtype=kind))
    assert is_finite(torch.tensor([1, 2]))


def test_values_too_large_for_float32_are_a_fault():
    """They would become infinite in the network."""
    assert faults([("a", torch.tensor([1e39], dtype=torch.float64))]) == {"a": "values beyond the range of float32"}


@pytest.fixture(scope="module")
def weights():
    return zoo.load_model(MODEL, pretrained=False).state_dict()


def write(state, path):
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_with_nan_is_refused_by_name(suffix, weights, tmp_path):
    """By a load, mapped or not, by an import and by inspect."""
    bad = torch.full_like(weights["layer4.2.conv3.weight"], float("nan"))
    path = write(weights | {"layer4.2.conv3.weight": bad}, tmp_path / f"a.{suffix}")
    for mmap in (True, False, "auto"):
        with pytest.raises(CheckpointFormatError, match=r"NaN or infinite values in layer4\.2\.conv3\.weight"):
            zoo.load_model(MODEL, checkpoint=path, mmap=mmap)
    with pytest.raises(CheckpointFormatError, match=r"layer4\.2\.conv3\.weight"):
        import_weights(f"{MODEL}.nan", path, cache_dir=tmp_path / "cache")
    summary = zoo.inspect_checkpoint(path)
    assert summary.faults == {"layer4.2.conv3.weight": "NaN or infinite values"}
    assert "values    NaN or infinite values in layer4.2.conv3.weight" in str(summary)
    match = next(match for match in summary.matches if match.model == MODEL)
    assert not match.complete
    assert "NaN or infinite values in layer4.2.conv3.weight" in str(match)


@pytest.mark.slow
def test_what_is_not_loaded_may_be_anything(weights, tmp_path):
    """A queue with NaN beside the network does no harm, and a counter is no weight."""
    beside = {"module.queue": torch.full((2, 2), float("nan"))}
    state = {f"module.encoder_q.{name}": tensor for name, tensor in weights.items()} | beside
    state["module.encoder_q.bn1.num_batches_tracked"] = torch.tensor(float("inf"))
    model = zoo.load_model(MODEL, checkpoint=write(state, tmp_path / "a.pth"))
    assert model.bn1.num_batches_tracked.item() == 0


@pytest.fixture
def recorded(weights, tmp_path, monkeypatch):
    """A manifest with one file, and the cache that it is copied to."""

    def record(state, name):
        path = write(state, tmp_path / name)
        facts = {"tag": "t", "models": [MODEL], "state": "hosted", "sources": [f"file:{path}"]}
        digest = zoo.fetching.cache.hash_file(path)
        weights_ = [facts | {"bytes": path.stat().st_size, "sha256": digest}]
        (tmp_path / "m.json").write_text(json.dumps({"schema": 1, "weights": weights_}))
        monkeypatch.setenv("ZOO_MANIFEST", str(tmp_path / "m.json"))
        monkeypatch.setenv("ZOO_HOME", str(tmp_path / "home"))
        return tmp_path / "home" / "files" / digest

    return record


@pytest.mark.slow
def test_a_conversion_reads_the_values_and_the_records(weights, recorded):
    """The copy in the cache is not made of weights with NaN, and later loads read none of it again."""
    recorded(weights | {"bn1.bias": torch.full((64,), float("inf"))}, "bad.pth")
    with pytest.raises(CheckpointFormatError, match=r"infinite values in bn1\.bias"):
        zoo.load_model(f"{MODEL}.t")
    recorded(weights, "good.pth")
    zoo.load_model(f"{MODEL}.t")


@pytest.mark.slow
def test_a_verified_file_is_looked_through_once(weights, recorded, monkeypatch):
    """Its stamp says so; a changed stamp, or a bad value, and it is looked through again."""
    looked = []
    monkeypatch.setattr("zoo.locate.faults", lambda values: looked.append(1) or faults(values))
    monkeypatch.setattr("zoo.loading.check_values", lambda values, path: looked.append(2))
    kept = recorded(weights, "good.safetensors")
    for _ in range(3):
        zoo.load_model(f"{MODEL}.t")
    assert looked == [1]
    stamp = json.loads(stamp_path(kept).read_text())
    assert stamp["finite"]
    stamp_path(kept).write_text(json.dumps(stamp | {"mtime_ns": -1}))  # to be hashed again
    zoo.load_model(f"{MODEL}.t")
    assert looked == [1, 1]


@pytest.mark.slow
def test_a_verified_file_with_nan_is_refused(weights, recorded):
    """Each time: no stamp calls it good."""
    kept = recorded(weights | {"bn1.bias": torch.full((64,), float("nan"))}, "bad.safetensors")
    for _ in range(2):
        with pytest.raises(CheckpointFormatError, match=r"NaN or infinite values in bn1\.bias"):
            zoo.load_model(f"{MODEL}.t")
    assert not json.loads(stamp_path(kept).read_text())["finite"]


@pytest.mark.slow
def test_a_warning_is_not_enough(weights, tmp_path, caplog):
    """Nothing is loaded, so nothing is announced."""
    path = write(weights | {"bn1.bias": torch.full((64,), float("nan"))}, tmp_path / "a.pth")
    with caplog.at_level(logging.INFO, "zoo"), pytest.raises(CheckpointFormatError):
        zoo.load_model(MODEL, checkpoint=path)
    assert not caplog.records
    assert list(open_checkpoint(path).tensors)

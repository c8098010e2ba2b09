"""Tensors of a PyTorch zip are copied out of their records: as they lie there, once, and whole."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from zoo.errors import CheckpointFormatError
from zoo.formats.opening import open_checkpoint


def test_torch_opens_a_file_once(tmp_path, monkeypatch):
    """Each time it makes all tensors anew: a network of 380 took 3 seconds when every tenth of it was opened again."""
    path, opened, load = tmp_path / "a.pth", [], torch.load
    torch.save({f"{i}": torch.full((9,), float(i)) for i in range(20)}, path)
    monkeypatch.setattr(torch, "load", lambda *args, **options: opened.append(args) or load(*args, **options))
    stored = open_checkpoint(path, mmap=False)
    assert [float(t[8]) for t in stored.read(dict(stored.tensors)).values()] == list(range(20))
    assert len(opened) == 1


@pytest.mark.parametrize("kind", [dict, Counter])
def test_tensors_are_copied_as_they_lie(kind, tmp_path):
    """With axes in another order, conjugated, negated, and in a dictionary whose keys the walk does not keep."""
    complex_ = torch.complex(torch.ones(3), torch.arange(3.0))
    kept = {
        "last": torch.arange(72.0).view(1, 2, 6, 6).to(memory_format=torch.channels_last),
        "end": torch.arange(48.0)[40:],
        "conjugated": complex_.conj(),
        "negated": (2 * complex_).conj().imag,
    }
    torch.save(kind(kept), tmp_path / "a.pth")
    stored = open_checkpoint(tmp_path / "a.pth", mmap=False)
    found = stored.read(dict(stored.tensors))
    assert found.keys() == kept.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, kept[name]), name
        assert tensor.untyped_storage().nbytes() == tensor.nbytes, "or the mapping of the whole file is kept"


def test_a_file_that_shrinks_before_it_is_read_is_damaged(tmp_path):
    """An error of ours, in place of tensors of no values."""
    path = tmp_path / "a.pth"
    torch.save({"a": torch.ones(9999)}, path)
    stored = open_checkpoint(path, mmap=False)
    tensors = dict(stored.tensors)
    stored.archive = replace(stored.archive, path=tmp_path / "b.pth")
    (tmp_path / "b.pth").write_bytes(path.read_bytes()[:9999])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(stored), "check_records", lambda *_: None)
        with pytest.raises(CheckpointFormatError, match="was cut short while it was read"):
            stored.read(tensors)

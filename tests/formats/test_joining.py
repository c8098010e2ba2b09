"""Tensors that a network has as one and a file as several: read in every format, accounted for as what they are."""

import pytest
import torch
from safetensors.torch import save_file

from zoo.checkpoint import left_out
from zoo.errors import CheckpointFormatError
from zoo.formats import join, open_checkpoint

PARTS = ("query", "key", "value")


def tensors(dtype=torch.float32):
    torch.manual_seed(0)
    return {name: torch.randn(300, 200).to(dtype) for name in (*PARTS, "other")}


WRITERS = {
    "safetensors": save_file,
    "zip": torch.save,
    "before 2020": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("form", WRITERS)
def test_the_parts_are_read_one_after_the_other(form, mmap, dtype, tmp_path):
    """Mapped and read, as they are and widened; the rest of the file is read as ever, and nothing else comes back."""
    state = tensors(dtype)
    WRITERS[form](state, tmp_path / "file")
    stored = open_checkpoint(tmp_path / "file", mmap=mmap)
    joined = join([stored.tensors[name] for name in PARTS])
    assert (joined.shape, joined.dtype) == ((900, 200), dtype)
    values = stored.read({"all": joined, "other": stored.tensors["other"]})
    assert set(values) == {"all", "other"}
    assert values["all"].dtype == torch.float32
    assert torch.equal(values["all"], torch.cat([state[name] for name in PARTS]).float())
    assert torch.equal(values["other"], state["other"].float())


def test_parts_are_not_said_to_be_left_out(tmp_path):
    """The report of a load would call tensors that it used dropped."""
    save_file(tensors(), tmp_path / "file")
    found = open_checkpoint(tmp_path / "file").tensors
    assert set(left_out(found, {"all": join([found[name] for name in PARTS])}, {})) == {"other"}


@pytest.mark.parametrize(("damaged", "is_found"), [("key", True), ("other", False)])
def test_the_records_of_parts_are_compared_and_no_others(damaged, is_found, tmp_path):
    """Where a file is read, a byte that is not what was written is an error; what nobody reads is left alone."""
    path, state = tmp_path / "file", tensors()
    torch.save(state, path)
    content = bytearray(path.read_bytes())
    content[content.index(state[damaged].numpy().tobytes()) + 4000] ^= 1
    path.write_bytes(content)
    stored = open_checkpoint(path, mmap=False)
    wanted = {"all": join([stored.tensors[name] for name in PARTS])}
    if is_found:
        with pytest.raises(CheckpointFormatError):
            stored.read(wanted)
    else:
        assert stored.read(wanted)["all"].shape == (900, 200)

"""What is prepared once and kept: it is made when it is not there, whole, and under the name of all it depends on."""

import numpy as np
import pytest

from zoo.errors import InputContractError
from zoo.training.prepared import digest_of, keep, keep_arrays, map_part


def test_a_thing_is_made_once(tmp_path):
    """Then it is read; one whose facts are missing, as of a killed process, is made again."""
    made, folder = [], tmp_path / "new"

    def make():
        made.append(1)
        return {"image": np.arange(6.0), "label": np.ones(3, np.uint8)}, {"spacing": [1.5, 2.0]}

    for _ in range(2):
        assert keep(folder, "key", make) == {"spacing": [1.5, 2.0]}
    assert len(made) == 1
    np.testing.assert_array_equal(map_part(folder, "key", "image"), np.arange(6.0))
    assert map_part(folder, "key", "label").dtype == np.uint8
    assert sorted(path.name for path in folder.iterdir()) == ["key.image.npy", "key.json", "key.label.npy"]
    (folder / "key.json").unlink()
    keep(folder, "key", make)
    assert len(made) == 2


def test_arrays_without_facts_are_made_once(tmp_path):
    """And again where one of them is missing; there is no file beside them."""
    made = []

    def make():
        made.append(1)
        return {"truth": np.zeros(2), "label": np.ones(2)}

    def ask():
        keep_arrays(tmp_path, "key", ("truth", "label"), make)
        return len(made)

    assert (ask(), ask()) == (1, 1)
    (tmp_path / "key.truth.npy").unlink()
    assert (ask(), ask()) == (2, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key.label.npy", "key.truth.npy"]


def test_what_cannot_be_made_leaves_nothing(tmp_path):
    """The next run tries again."""

    def refuse():
        raise InputContractError("no image")

    with pytest.raises(InputContractError, match="no image"):
        keep(tmp_path / "new", "key", refuse)
    assert not (tmp_path / "new").exists()


def test_a_key_is_of_files_and_settings(tmp_path):
    """Another content or setting is another thing; of a folder all files in it count."""
    (tmp_path / "series").mkdir()
    for name in ("a", "series/b"):
        (tmp_path / name).write_text("1")
    files = [tmp_path / "a", tmp_path / "series"]
    key = digest_of(files, 1, {"spacing": 2.0})
    assert key == digest_of(files, 1, {"spacing": 2.0})
    keys = {key, digest_of(files, 1, {"spacing": 2.5}), digest_of(files[:1], 1, {"spacing": 2.0})}
    (tmp_path / "series" / "b").write_text("12")
    assert len(keys | {digest_of(files, 1, {"spacing": 2.0})}) == 4
    with pytest.raises(OSError, match="gone"):
        digest_of([tmp_path / "gone"])

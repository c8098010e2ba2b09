"""Features that a probe makes itself: in memory as in a folder, and images without features are named."""

import logging

import numpy as np
import pytest
from PIL import Image

from zoo.commands.phantom import chest_phantom
from zoo.embedding import Embedder, find_cases
from zoo.errors import InputContractError
from zoo.evaluation.embedding import embed_by


@pytest.fixture(scope="module")
def embedder():
    return Embedder("caid-resnet50.chestxray14-800", device="cpu")


@pytest.fixture
def films(tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    for number in range(2):
        Image.fromarray(np.roll(chest_phantom(), 9 * number, 1)).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.mark.slow
def test_features_in_memory_are_those_of_a_folder(embedder, films, tmp_path, caplog):
    """Rows, paths and facts; a broken film is warned of by its name, in both."""
    cases = find_cases([films], volumes=False)
    with caplog.at_level(logging.WARNING, "zoo"):
        here, there = embed_by(embedder, cases, None, 0), embed_by(embedder, cases, tmp_path / "features", 0)
    assert [
        r.getMessage().count("broken.png") for r in caplog.records if "1 images have no features" in r.getMessage()
    ] == [1, 1]
    np.testing.assert_array_equal(here.features, there.features)
    assert list(here.table["path"]) == list(there.table["path"]) == [str(films / f"{n}.png") for n in range(2)]
    kept = {key: value for key, value in there.table.attrs.items() if key in here.table.attrs}
    assert kept["model"] == "caid-resnet50.chestxray14-800"
    assert {key: here.table.attrs[key] for key in kept} == kept
    assert {"model", "input", "layer", "licences"} <= set(kept)


@pytest.mark.slow
def test_without_any_feature_the_images_are_named(embedder, films):
    for number in range(2):
        (films / f"{number}.png").unlink()
    with pytest.raises(InputContractError, match=r"no image has features by caid-resnet50.*broken\.png"):
        embed_by(embedder, find_cases([films], volumes=False), None, 0)

"""The embedder: batches in columns, in other processes, parts of several cases together, precision, and maps."""

import pickle

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import zoo
from zoo.embedding import Embedder, find_cases
from zoo.entry import Parts
from zoo.errors import OptionError
from zoo.networks.windows import cut_windows, pool_over

pytestmark = pytest.mark.usefixtures("warm_home")

NAME = "caid-resnet50.chestxray14-800"
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""Batches of other sizes sum in another order, some 1e-6; other images differ by more than 0.01."""


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Five films of smooth noise, and one that is none."""
    folder = tmp_path_factory.mktemp("films")
    for i in range(5):
        coarse = np.random.default_rng(i).integers(0, 256, (6, 5), dtype=np.uint8)
        Image.fromarray(coarse).resize((90, 70), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    (folder / "2a.png").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def embedder():
    return Embedder(NAME, device="cpu", batch_size=2)


@pytest.mark.slow
def test_a_batch_comes_back_in_columns(embedder, films):
    """Any columns are carried, features are the network's own, and a case that failed is NaN with its reason."""
    paths = [str(path) for path in sorted(films.iterdir())]
    found = embedder({"path": paths, "ward": list("abcdef")})
    assert list(found) == ["path", "ward", "feature", "error"]
    assert (found["path"], found["ward"]) == (paths, list("abcdef"))
    assert found["feature"].dtype == np.float32
    assert [bool(error) for error in found["error"]] == [False, False, False, True, False, False]
    assert "cannot identify" in found["error"][3]
    assert np.isnan(found["feature"][3]).all()
    model, transform = zoo.load_model(NAME), zoo.load_transform(NAME)
    for row in (0, 5):
        with torch.no_grad():
            expected = model(transform(paths[row])[None])[0].numpy()
        np.testing.assert_allclose(found["feature"][row], expected, **CLOSE)


def test_it_is_sent_to_other_processes_without_its_network(embedder, films):
    """Some kilobytes; what comes out there is the same to the last bit."""
    batch = {"path": [str(films / "0.png"), str(films / "1.png")]}
    expected = embedder(batch)["feature"]
    sent = pickle.dumps(embedder)
    assert len(sent) < 20_000
    there = pickle.loads(sent)
    assert "network" not in vars(there)
    assert np.array_equal(there(batch)["feature"], expected)


def test_without_a_good_case_there_are_columns_too(embedder, films):
    """Of the network's width, so that tables of several batches agree; and none of an empty batch."""
    found = embedder({"path": [str(films / "2a.png")]})
    assert found["feature"].shape == (1, 2048)
    assert embedder({"path": []})["feature"].shape == (0, 2048)


def test_a_batch_needs_paths(embedder):
    """And of lesions their points: what is there is named."""
    with pytest.raises(OptionError, match="columns file, ward has no 'path'"):
        embedder({"file": ["a.png"], "ward": ["b"]})
    lesions = Embedder("fmcib-resnet50", device="cpu")
    with pytest.raises(OptionError, match="columns path has no 'point'"):
        lesions({"path": ["a.nii"]})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"precision": "fp8"}, "precision='fp8': fp32, bf16, fp16 are known"),
        ({"layer": "last"}, "layer='last'"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_wrong_values_are_refused_before_anything_is_loaded(options, said):
    """When it is made, not in a worker after hours."""
    with pytest.raises(OptionError, match=said):
        Embedder(NAME, **{"device": "cpu"} | options)


def test_bfloat16_is_near_and_is_used(films):
    """Features are float32 in any case; eight bits of mantissa leave some 1e-2, and equal rows would say it was off."""
    batch = {"path": [str(films / "0.png")]}
    exact, near = (Embedder(NAME, device="cpu", precision=p)(batch)["feature"] for p in ("fp32", "bf16"))
    assert near.dtype == np.float32
    error = np.linalg.norm(near - exact) / np.linalg.norm(exact)
    assert 1e-5 < error < 0.05


def test_tokens_are_the_last_map(embedder, films):
    """A row is `(C, H, W)`, whose mean is the pooled feature."""
    batch = {"path": [str(films / "0.png"), str(films / "1.png")]}
    maps = Embedder(NAME, device="cpu", tokens=True)(batch)["feature"]
    assert maps.shape == (2, 2048, 2, 2)
    np.testing.assert_allclose(maps.mean((2, 3)), embedder(batch)["feature"], **CLOSE)


def test_a_case_has_the_same_bits_whoever_its_neighbours_are(embedder, films):
    """Units follow from the list: a run that was stopped between any two of them computes the rest alike."""
    cases = find_cases([films], volumes=False)
    units = embedder.units(range(len(cases)))
    assert [list(unit) for unit in units] == [[0, 1], [2, 3], [4, 5]]
    whole = {each.case: each.features for each in embedder.stream(cases)}
    for unit in reversed(units):
        for each in next(embedder.embed_units(cases, [unit], workers=0)):
            assert (each.features is None) == (whole[each.case] is None)
            assert each.features is None or np.array_equal(each.features, whole[each.case])


def test_cases_of_one_unit_share_batches(films, monkeypatch):
    """The network is called with as many images as it takes, not film by film."""
    embedder = Embedder(NAME, device="cpu", batch_size=3)
    given, plain = [], embedder.network.forward

    def forward(x):
        given.append(len(x))
        return plain(x)

    monkeypatch.setattr(embedder.network, "forward", forward)
    list(embedder.stream(find_cases([films], volumes=False)))
    assert given == [3, 2]  # one of the second three is no image


@pytest.mark.parametrize("shape", [(96, 96, 96), (40, 97, 200), (5, 64, 130)])
@pytest.mark.parametrize("stride", [None, 8, 32])
def test_weights_of_windows_make_the_mean_of_the_whole_map(shape, stride):
    """Each cell that holds some of the volume counts once, however many windows it is in: as `pool_over` has it."""
    torch.manual_seed(0)
    volume, cell = torch.randn(1, *shape), stride or 32

    def features(x):
        return torch.nn.functional.avg_pool3d(x, cell).square()

    how = {"batch_size": 4, "overlap": 0.0, "device": torch.device("cpu")}
    parts = cut_windows(volume, (64, 64, 64), 32, stride)
    mean = (features(parts.inputs[0]) * parts.weights[:, None]).sum()
    if stride == 8:  # padded to whole cells of 32 all the same, so that windows lie where the last map has them
        padded, inside = _padded(volume)
        expected = features(padded[None])[0, 0][inside].mean()
    else:
        expected = pool_over(features, volume, (64, 64, 64), 32, **how)[1]
    torch.testing.assert_close(parts.weights.sum(), torch.tensor(1.0))
    torch.testing.assert_close(mean, expected.squeeze(), rtol=1e-5, atol=1e-7)


def _padded(volume):
    before = [max(64, -(-side // 32) * 32) - side for side in volume.shape[1:]]
    margins = [(lack // 2, lack - lack // 2) for lack in before]
    flat = [n for pair in reversed(margins) for n in pair]
    cells = tuple(
        slice(low // 8, -(-(low + side) // 8)) for (low, _), side in zip(margins, volume.shape[1:], strict=True)
    )
    return torch.nn.functional.pad(volume, flat), cells


def test_parts_that_must_be_alone_are(tmp_path):
    """Of a network whose features depend on the rest of a batch."""
    embedder = Embedder("genesis-encoder", device="cpu", batch_size=4)
    given = []

    class Network(torch.nn.Linear):
        def forward(self, x):
            given.append(len(x))
            return super().forward(x)

    vars(embedder)["network"] = Network(3, 2)
    for alone, expected in ((True, [1, 1, 1, 1, 1]), (False, [4, 1])):
        given.clear()
        embedder._rows(Parts((torch.zeros(5, 3),), torch.full((5,), 0.2), alone))
        assert given == expected


def test_windows_of_a_volume_are_one_row(tmp_path):
    """MONAI SSL's ViT with windows of 32 voxels: one row a CT, whatever number of windows goes through at once."""
    torch.manual_seed(0)
    small = {"img_size": 32, "hidden_size": 64, "mlp_dim": 128}
    save_file(zoo.load_model("monai-ssl-vitb16", pretrained=False, **small).state_dict(), tmp_path / "w.safetensors")
    values = np.random.default_rng(0).normal(40, 60, (60, 50, 40)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.5, 1.5, 2, 1])), tmp_path / "ct.nii.gz")
    rows = [
        Embedder("monai-ssl-vitb16", checkpoint=tmp_path / "w.safetensors", device="cpu", batch_size=size)(
            {"path": [tmp_path / "ct.nii.gz"]}
        )["feature"]
        for size in (1, 8)
    ]
    assert rows[0].shape == (1, 64)
    np.testing.assert_allclose(rows[0], rows[1], **CLOSE)


@pytest.mark.parametrize("layer", [5, -6])
def test_a_stage_that_is_not_there_is_refused_in_one_line(films, layer):
    """Before anything is written; the last error was timm's own, with a traceback."""
    with pytest.raises(OptionError, match=f"layer={layer}: 'caid-resnet50' has 5 stages, 0 to 4"):
        Embedder(NAME, device="cpu", layer=layer).facts()


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ({"path": "a.png"}, "column 'path' of the batch holds 'a.png': a list of cells"),
        ({"path": ["a.png"], "label": 1}, "column 'label' of the batch holds 1: a list"),
        ({"path": ["a.png"], "label": [1, 2]}, "have .1, 2. cells: as many in each"),
    ],
)
def test_a_row_is_no_batch(embedder, batch, said):
    """A path alone would be taken letter by letter."""
    with pytest.raises(OptionError, match=said):
        embedder(batch)


def test_a_stage_is_the_mean_of_its_map(films):
    """As `forward_intermediates` gives it; with tokens the map itself."""
    batch = {"path": [str(films / "0.png")]}
    model, image = zoo.load_model(NAME), zoo.load_transform(NAME)(films / "0.png")[None]
    with torch.no_grad():
        expected = model.forward_intermediates(image, indices=[2], intermediates_only=True)[0]
    found = Embedder(NAME, device="cpu", layer=2)(batch)["feature"]
    np.testing.assert_allclose(found, expected.mean((2, 3)).numpy(), **CLOSE)
    assert Embedder(NAME, device="cpu", layer=2, tokens=True)(batch)["feature"].shape == tuple(expected.shape)

"""DrasCLR's features of patients: each patch at its own landmark, cohorts in shares and after a kill, bad input."""

import json
import os
import types

import gloo
import numpy as np
import pytest
import torch
import torch.distributed as dist
from drasclr_patches import LANDMARKS, write_subjects

import zoo
from zoo.checkpoint.export import export_safetensors
from zoo.entries.drasclr import embed
from zoo.entries.drasclr.atlas import normalise
from zoo.entries.drasclr.contract import NAME
from zoo.entries.drasclr.ct import patient as patient_module
from zoo.entries.drasclr.data import scale
from zoo.entries.drasclr.embed import embed_cohort, embed_patient, pool
from zoo.entries.drasclr.features import SubjectFeatures, merge, read_subject_features, write_subject_features
from zoo.entries.drasclr.model import DrasCLREncoder
from zoo.errors import InputContractError, OptionError
from zoo.fetching.cache import hash_file
from zoo.training.args import run_command

pytestmark = pytest.mark.usefixtures("one_thread")

PLACES = torch.from_numpy(normalise(LANDMARKS))
SUBJECTS = [f"s{i}" for i in range(6)]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""Sums in another order differ by some 1e-6 of features around 1; another landmark or subject by more than 0.01."""


@pytest.fixture(scope="module")
def model():
    """An encoder with statistics of its own, so that eval and train mode differ."""
    torch.manual_seed(0)
    network = DrasCLREncoder(experts=2)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 1e-3, 1e-2)  # so that what is in a patch comes through
    return network.eval()


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    """Six subjects at five landmarks."""
    return write_subjects(tmp_path_factory.mktemp("cohort") / "patch", textured=True)


@pytest.fixture(scope="module")
def expected(model, patches):
    """Features (6, 5, 128), each patch by itself at its landmark."""
    with torch.no_grad():
        rows = [
            model(torch.from_numpy(scale(patch))[None, None], place)
            for sid in SUBJECTS
            for patch, place in zip(np.load(patches / f"{sid}_patch.npy"), PLACES, strict=True)
        ]
    return torch.cat(rows).unflatten(0, (6, 5))


@pytest.fixture
def own(tmp_path):
    """A folder of three subjects that may be changed."""
    return write_subjects(tmp_path / "patch", 3, textured=True)


def change(folder, sid, edit):
    """Rewrite a subject's patches."""
    array = np.load(folder / f"{sid}_patch.npy")
    np.save(folder / f"{sid}_patch.npy", edit(array))


def spoil(array):
    """A NaN in the last patch, which is looked at last."""
    array = array.astype(np.float32)
    array[-1, 3, 3, 3] = np.nan
    return array


# --- one patient ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_patch_is_embedded_at_its_landmark(model, patches, expected):
    """From an array of any type, a tensor, or a file; in batches of any size; a row for each landmark."""
    stored = np.load(patches / "s2_patch.npy")
    apart = (expected[:, None] - expected[None]).abs().amax((2, 3))
    assert apart[~torch.eye(6, dtype=torch.bool)].min() > 0.01
    for given in (stored, stored.astype(np.float64), torch.from_numpy(stored), patches / "s2_patch.npy"):
        features = embed_patient(model, given, PLACES)
        assert (features.dtype, features.shape, features.requires_grad) == (torch.float32, (5, 128), False)
        torch.testing.assert_close(features, expected[2], **CLOSE)
    for batch_size in (1, 2, 100):
        features = embed_patient(model, stored, PLACES.numpy(), batch_size=batch_size)
        torch.testing.assert_close(features, expected[2], **CLOSE)
    turned = embed_patient(model, stored, PLACES.flip(0))
    assert (turned - expected[2])[[0, 1, 3, 4]].abs().amax(1).min() > 1e-3


def test_the_pooled_vector_is_the_mean(expected):
    """Over landmarks, of one patient or of many."""
    torch.testing.assert_close(pool(expected[1]), expected[1].sum(0) / 5)
    assert pool(expected).shape == (6, 128)


def test_a_network_in_training_is_left_as_it_was(model, patches, expected):
    """Features are those of eval mode; modes and statistics do not change, not even after an error."""
    model.train()
    model.bn1.eval()
    before = model.bn2.running_mean.clone()
    stored = np.load(patches / "s0_patch.npy")
    torch.testing.assert_close(embed_patient(model, stored, PLACES), expected[0], **CLOSE)
    with pytest.raises(InputContractError):
        embed_patient(model, spoil(stored), PLACES)
    modes = {name: module.training for name, module in model.named_modules()}
    model.eval()
    assert [name for name, mode in modes.items() if not mode] == ["bn1"]
    assert torch.equal(model.bn2.running_mean, before)


def test_the_authors_landmarks_are_the_default(model, patches, expected, tmp_path, monkeypatch):
    """They are an asset of the weights; here a manifest of one's own has others."""
    file = tmp_path / "landmarks.npy"
    np.save(file, LANDMARKS)
    asset = {"sources": [f"file:{file.name}"], "bytes": file.stat().st_size, "sha256": hash_file(file)}
    record = {"tag": "mine", "models": [NAME], "state": "hosted", "assets": {"landmarks": asset}}
    record |= {"sources": ["file:none"], "bytes": 1, "sha256": "0" * 64}
    manifest = {"schema": 1, "weights": [record]}
    (tmp_path / "mine.json").write_text(json.dumps(manifest))
    monkeypatch.setenv("ZOO_MANIFEST", str(tmp_path / "mine.json"))
    torch.testing.assert_close(embed_patient(model, patches / "s1_patch.npy"), expected[1], **CLOSE)


def test_a_ct_is_cut_into_patches_first(model, patches, expected, monkeypatch):
    """What is no `.npy` and no array goes through preprocessing, whose own tests say what that does."""
    asked = []

    def stand_in(image, cache_dir):
        asked.append((image, cache_dir))
        return types.SimpleNamespace(patches=np.load(patches / "s3_patch.npy"))

    monkeypatch.setattr(patient_module, "preprocess_ct", stand_in)
    torch.testing.assert_close(embed_patient(model, "scans/s3.nii.gz", PLACES, cache_dir="c"), expected[3], **CLOSE)
    assert asked == [("scans/s3.nii.gz", "c")]


GOOD = np.full((5, 32, 32, 32), -900, np.int16)


@pytest.mark.parametrize(
    ("given", "places", "message"),
    [
        (GOOD[:4], PLACES, "the patient has 4 patches, but there are 5 locations"),
        (GOOD[:, :31], PLACES, r"shape \(5, 31, 32, 32\): \(L, 32, 32, 32\) is expected"),
        (GOOD[0], PLACES, r"shape \(32, 32, 32\).*preprocess_ct"),
        (GOOD[:0], PLACES[:0], r"floats \(L, 3\) in \[-1, 1\] are expected"),
        (GOOD[:0], PLACES, r"shape \(0, 32, 32, 32\)"),
        (spoil(GOOD), PLACES, "the patient: 1 of .* voxels are NaN or infinite"),
        (np.uint8(GOOD % 256), PLACES, "least value of the patient is 124: HU are expected"),
        (GOOD / 1000, PLACES, r"least value of the patient is -0\.9: HU are expected, not yet scaled"),
        (GOOD > 0, PLACES, "the patient: patches are bool"),
        (GOOD, PLACES * 1.1, "from -1.1 to 1.1; from -1 to 1 is expected"),
        (GOOD, PLACES * float("nan"), "from nan to nan"),
        (GOOD, LANDMARKS, r"locations are torch\.int64 \(5, 3\).*atlas\.normalise"),
        (GOOD, PLACES[0], r"torch\.float32 \(3,\)"),
    ],
)
def test_what_cannot_be_a_patient_is_refused(given, places, message, model):
    """Another number or size of patches, NaN, no HU; locations that are none."""
    with pytest.raises(InputContractError, match=message):
        embed_patient(model, given, places)


# --- cohorts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["parquet", "npz"])
def test_a_cohort_has_a_row_for_each_subject(suffix, model, patches, expected, tmp_path):
    """Sorted, the mean of its features; the file says by which weights and where."""
    out = tmp_path / f"features.{suffix}"
    assert embed_cohort(model, patches, out, locations=PLACES, block=4, full=tmp_path / "rows") == out
    found = read_subject_features(out)
    assert list(found.sids) == SUBJECTS
    assert found.values.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(found.values), expected.mean(1), **CLOSE)
    for sid, features in zip(SUBJECTS, expected, strict=True):
        rows = np.load(tmp_path / "rows" / f"{sid}_features.npy")
        torch.testing.assert_close(torch.from_numpy(rows), features, **CLOSE)
    assert found.facts == embed.describe(model, PLACES)
    assert json.loads((tmp_path / "rows" / "facts.json").read_text()) == found.facts
    assert {file.name for file in tmp_path.iterdir()} == {out.name, "rows"}


def test_patches_at_one_landmark_go_together(model, patches, tmp_path):
    """With their location once, by which the network finds on a GPU, too, that they share kernels."""
    given = []
    hook = model.register_forward_pre_hook(lambda _, args: given.append([tuple(arg.shape) for arg in args]))
    embed_cohort(model, patches, tmp_path / "features.npz", locations=PLACES, block=4)
    hook.remove()
    whole, last = [(4, 1, 32, 32, 32), (4, 1, 3)], [(4, 1, 32, 32, 32), (2, 2, 3)]
    assert given == [whole] * 5 + [last] * 2 + [[(2, 1, 32, 32, 32), (2, 1, 3)]]


@pytest.mark.slow
def test_the_files_are_those_of_their_formats(model, patches, tmp_path):
    """Other libraries read them without the zoo."""
    pandas = pytest.importorskip("pandas")
    for name in ("f.parquet", "f.npz"):
        embed_cohort(model, patches, tmp_path / name, subjects=["s1", "s0"], locations=PLACES)
    table = pandas.read_parquet(tmp_path / "f.parquet")
    assert list(table.columns[:3]) == ["sid", "f000", "f001"]
    assert table["sid"].tolist() == ["s0", "s1"]
    with np.load(tmp_path / "f.npz") as arrays:
        assert np.array_equal(table.iloc[:, 1:].to_numpy(), arrays["features"])


@pytest.mark.slow
def test_a_killed_run_goes_on(model, own, tmp_path):
    """What was done before stays, whatever became of its patches since; the rest is done."""
    out, calls = tmp_path / "features.npz", []

    def end(*_):
        calls.append(1)
        if len(calls) > len(LANDMARKS):
            raise MemoryError

    hook = model.register_forward_pre_hook(end)
    with pytest.raises(MemoryError):
        embed_cohort(model, own, out, locations=PLACES, block=1)
    hook.remove()
    assert not out.exists()
    change(own, "s0", lambda array: array + 100)
    embed_cohort(model, own, out, locations=PLACES, block=1)
    again = write_subjects(tmp_path / "again", 3, textured=True)
    first = embed_patient(model, again / "s0_patch.npy", PLACES).mean(0).numpy()
    found = read_subject_features(out)
    assert found.sids == ("s0", "s1", "s2")
    np.testing.assert_allclose(found.values[0], first, **CLOSE)
    assert not (tmp_path / "features.npz.parts").exists()


def test_what_a_killed_run_left_does_not_mix(model, own, tmp_path, monkeypatch):
    """With features of other weights or locations, or of patches of another registration; the same run goes on."""
    out = tmp_path / "features.npz"
    registered(own, s0="fast", s1="published")
    with monkeypatch.context() as killed:
        killed.setattr(embed, "join_parts", lambda *_: None)
        embed_cohort(model, own, out, subjects=["s0"], locations=PLACES)
    with pytest.raises(OptionError, match=r"features\.npz\.parts has features of other weights: name another"):
        embed_cohort(DrasCLREncoder(experts=2), own, out, subjects=["s0"], locations=PLACES)
    with pytest.raises(OptionError, match="other locations"):
        embed_cohort(model, own, out, subjects=["s0"], locations=PLACES.flip(0))
    with pytest.raises(OptionError, match="other registration"):
        embed_cohort(model, own, out, subjects=["s1"], locations=PLACES)
    embed_cohort(model, own, out, subjects=["s0"], locations=PLACES)
    assert read_subject_features(out).sids == ("s0",)


def test_a_subject_without_features_costs_itself_alone(model, own, tmp_path):
    """The others are in OUT; once it is mended the same command adds it, and their rows stay, bit by bit."""
    out = tmp_path / "features.npz"
    change(own, "s1", spoil)
    with pytest.raises(InputContractError, match=r"1 subject\(s\) have no features.*\n.*s1: the patient: 1 of .* NaN"):
        embed_cohort(model, own, out, locations=PLACES, full=tmp_path / "rows")
    first = read_subject_features(out)
    assert first.sids == ("s0", "s2")
    change(own, "s1", np.nan_to_num)
    embed_cohort(model, own, out, locations=PLACES, full=tmp_path / "rows")
    found = read_subject_features(out)
    assert found.sids == ("s0", "s1", "s2")
    assert np.array_equal(found.values[[0, 2]], first.values)
    mended = embed_patient(model, own / "s1_patch.npy", PLACES).mean(0).numpy()
    np.testing.assert_allclose(found.values[1], mended, **CLOSE)


@pytest.mark.slow
def test_subjects_that_came_later_are_added(model, own, patches, expected, tmp_path):
    """Rows that are there stay, bit by bit; a run with nothing to do changes nothing."""
    out = tmp_path / "features.parquet"
    embed_cohort(model, own, out, locations=PLACES, subjects=["s1"])
    first = read_subject_features(out)
    change(own, "s1", lambda array: array + 100)
    embed_cohort(model, own, out, locations=PLACES)
    found, stamp = read_subject_features(out), out.stat().st_mtime_ns
    assert found.sids == ("s0", "s1", "s2")
    assert np.array_equal(found.values[1], first.values[0])
    torch.testing.assert_close(torch.from_numpy(found.values[2]), expected[2].mean(0), **CLOSE)
    embed_cohort(model, own, out, locations=PLACES)
    assert out.stat().st_mtime_ns == stamp
    embed_cohort(model, own, out, locations=PLACES, full=tmp_path / "rows")  # rows were not asked for before
    assert len(list((tmp_path / "rows").glob("*_features.npy"))) == 3


def test_other_weights_and_other_places_do_not_mix(model, own, tmp_path):
    """Neither in one file nor in one folder of rows."""
    out = tmp_path / "features.npz"
    embed_cohort(model, own, out, locations=PLACES, full=tmp_path / "rows")
    other = DrasCLREncoder(experts=2)
    with pytest.raises(OptionError, match=r"features\.npz has features of other weights: name another"):
        embed_cohort(other, own, out, locations=PLACES)
    with pytest.raises(OptionError, match="other locations"):
        embed_cohort(model, own, out, locations=PLACES.flip(0))
    with pytest.raises(OptionError, match="rows has features of other weights and locations"):
        embed_cohort(other, own, tmp_path / "more.npz", locations=PLACES.flip(0), full=tmp_path / "rows")


@pytest.mark.slow
def test_two_processes_make_what_one_makes(model, patches, expected, tmp_path):
    """Each takes its share, the first puts them together; one of them has less to do."""
    out = tmp_path / "features.npz"
    embed_cohort(model, patches, out, subjects=["s3"], locations=PLACES)
    gloo.run(embed_share, 2, tmp_path / "group", model, patches, out, tmp_path / "rows")
    found = read_subject_features(out)
    assert list(found.sids) == SUBJECTS
    torch.testing.assert_close(torch.from_numpy(found.values), expected.mean(1), **CLOSE)
    assert len(list((tmp_path / "rows").glob("*_features.npy"))) == 6
    assert not (tmp_path / "features.npz.parts").exists()


def embed_share(model, patches, out, rows):
    os.environ.update(RANK=str(dist.get_rank()), WORLD_SIZE=str(dist.get_world_size()))  # as torchrun does
    embed_cohort(model, patches, out, locations=PLACES, full=rows, block=2)
    assert read_subject_features(out).sids == tuple(SUBJECTS)  # whichever of them has put the rows together


@pytest.mark.slow
def test_the_last_task_of_an_array_puts_the_rows_together(model, patches, expected, tmp_path, monkeypatch):
    """Tasks of SLURM have no process group, and begin when they like; until the last one there is no file."""
    out = tmp_path / "features.npz"
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    for task in (1, 0, 2):
        assert not out.exists()
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        embed_cohort(model, patches, out, locations=PLACES, block=2)
    found = read_subject_features(out)
    assert list(found.sids) == SUBJECTS
    torch.testing.assert_close(torch.from_numpy(found.values), expected.mean(1), **CLOSE)
    assert not (tmp_path / "features.npz.parts").exists()


def test_nobody_to_embed(model, own, tmp_path):
    """An empty folder, an empty list, a name twice, and one without a file."""
    (tmp_path / "empty").mkdir()
    out = tmp_path / "features.npz"
    with pytest.raises(OptionError, match=r"there are no files .*empty: python -m"):
        embed_cohort(model, tmp_path / "empty", out, locations=PLACES)
    with pytest.raises(OptionError, match="no subjects are named"):
        embed_cohort(model, own, out, subjects=[], locations=PLACES)
    with pytest.raises(OptionError, match="1 of the subjects are named twice: s0"):
        embed_cohort(model, own, out, subjects=["s0", "s1", "s0"], locations=PLACES)
    with pytest.raises(InputContractError, match=r"2 of 3 subjects have no file <sid>_patch.npy in .*: s8, s9"):
        embed_cohort(model, own, out, subjects=["s0", "s9", "s8"], locations=PLACES)
    with pytest.raises(OptionError, match=r"features\.csv: expected a name that ends in \.parquet or \.npz"):
        embed_cohort(model, own, tmp_path / "features.csv", locations=PLACES)
    with pytest.raises(OptionError, match="at least 1 subject"):
        embed_cohort(model, own, out, locations=PLACES, block=0)
    assert not list(tmp_path.glob("features*"))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda array: array[:4], "s1: the patient has 4 patches, but there are 5 locations"),
        (lambda array: array[:, :, 1:], r"s1_patch\.npy holds int16 \(5, 32, 31, 32\)"),
        (lambda array: array.astype("U8"), r"s1_patch\.npy holds <U8"),
        (lambda array: np.uint8(array % 256), "s1: the least value of the patient is 0: HU"),
    ],
)
def test_a_subject_that_cannot_be_embedded_is_named(edit, message, model, own, tmp_path):
    """With what is wrong with its patches."""
    change(own, "s1", edit)
    with pytest.raises(InputContractError, match=message):
        embed_cohort(model, own, tmp_path / "features.npz", locations=PLACES)


def registered(patches, **ways):
    """Write a record of the registration, with or without its engine, beside the patches of some subjects."""
    (patches.parent / "facts").mkdir(exist_ok=True)
    for sid, way in ways.items():
        registration, _, engine = way.partition(" by ")
        words = {key: word for key, word in (("registration", registration), ("engine", engine)) if word}
        (patches.parent / "facts" / f"{sid}.json").write_text(json.dumps(words))


def test_features_of_one_registration_are_not_added_to_those_of_another(model, own, tmp_path):
    """A record that names none is of the published one; without records nothing is known, and nothing is refused."""
    out = tmp_path / "features.npz"
    registered(own, s0="published", s1="", s2="fast")
    embed_cohort(model, own, out, subjects=["s0", "s1"], locations=PLACES)
    assert read_subject_features(out).facts["registration"] == "published"
    with pytest.raises(OptionError, match="features of other registration: name another file"):
        embed_cohort(model, own, out, subjects=["s2"], locations=PLACES)
    (own.parent / "facts" / "s2.json").unlink()
    embed_cohort(model, own, out, subjects=["s2"], locations=PLACES)
    found = read_subject_features(out)
    assert (found.sids, found.facts["registration"]) == (("s0", "s1", "s2"), "published")


def test_patches_of_two_registrations_are_warned_of(model, own, tmp_path, caplog):
    """With their numbers, and the features say it; two engines of one registration are two."""
    for number, other in enumerate(("fast by scipy", "published by antspyx")):
        registered(own, s0=other, s1="fast by simpleitk", s2="fast by simpleitk")
        file = embed_cohort(model, own, tmp_path / f"{number}.npz", subjects=["s0", "s1", "s2"], locations=PLACES)
        assert f"{other} 1" in caplog.text
        assert "fast by simpleitk 2" in caplog.text
        assert set(read_subject_features(file).facts["registration"].split(" and ")) == {other, "fast by simpleitk"}


# --- files of features ------------------------------------------------------------------------------------------------


def test_later_rows_replace_earlier_ones():
    """Sorted by subject."""
    first = SubjectFeatures(("b", "a"), np.float32([[1, 1], [2, 2]]), {})
    merged = merge([first, SubjectFeatures(("b", "c"), np.float32([[3, 3], [4, 4]]), {"weights": "x"})])
    assert merged.sids == ("a", "b", "c")
    assert merged.values.tolist() == [[2, 2], [3, 3], [4, 4]]


@pytest.mark.parametrize("suffix", ["parquet", "npz"])
def test_files_that_hold_no_features_are_refused(suffix, tmp_path):
    """Absent, garbage, cut short, a subject twice, NaN."""
    file = tmp_path / f"f.{suffix}"
    with pytest.raises(OptionError, match=r"no features at .*drasclr\.embed"):
        read_subject_features(file)
    write_subject_features(file, SubjectFeatures(("a", "b"), np.ones((2, 3), np.float32), {"weights": "x"}))
    assert read_subject_features(file).facts == {"weights": "x"}
    whole = file.read_bytes()
    for content in (b"", b"features", whole[: len(whole) // 2]):
        file.write_bytes(content)
        with pytest.raises(InputContractError, match="as features"):
            read_subject_features(file)
    write_subject_features(file, SubjectFeatures(("a", "a"), np.ones((2, 3), np.float32), {}))
    with pytest.raises(InputContractError, match=r"1 of its . rows repeat a subject"):
        read_subject_features(file)
    write_subject_features(file, SubjectFeatures(("a", "b"), np.float32([[1, 1], [np.nan, 0]]), {}))
    with pytest.raises(InputContractError, match=r"1 row\(s\) are NaN or infinite, of b"):
        read_subject_features(file)


def test_files_of_others_are_read(tmp_path):
    """A column of subjects beside columns of numbers, without what the zoo notes."""
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame({"sid": [7, 8], "a": [1.0, 2.0], "b": [3, 4]}).to_parquet(tmp_path / "f.parquet")
    found = read_subject_features(tmp_path / "f.parquet")
    assert (found.sids, found.values.tolist(), found.facts) == (("7", "8"), [[1, 3], [2, 4]], {})


# --- from the command line --------------------------------------------------------------------------------------------


def test_the_command(model, patches, expected, tmp_path):
    """From a checkpoint and landmarks; the file says where the weights are from."""
    export_safetensors(model.state_dict(), tmp_path / "own.safetensors")
    np.save(tmp_path / "landmarks.npy", LANDMARKS)
    (tmp_path / "some.csv").write_text("sid,age\ns4,60\ns1,50\n")
    given = {"patches": patches, "out": tmp_path / "f.npz", "landmarks": tmp_path / "landmarks.npy"}
    given |= {"checkpoint": tmp_path / "own.safetensors", "table": tmp_path / "some.csv", "device": "cpu"}
    out = embed.main([word for name, value in given.items() for word in (f"--{name}", str(value))])
    found = read_subject_features(out)
    assert found.sids == ("s1", "s4")
    torch.testing.assert_close(torch.from_numpy(found.values), expected[[1, 4]].mean(1), **CLOSE)
    assert found.facts["origin"]["source"] == str(tmp_path / "own.safetensors")
    same = zoo.load_model(NAME, checkpoint=given["checkpoint"])
    assert found.facts["weights"] == embed.describe(same, PLACES)["weights"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "caid-resnet50"], "--model caid-resnet50: expected drasclr-cnn3d"),
        (["--table", "none.csv"], r"none\.csv does not exist"),
        (["--block", "0"], "block=0: at least 1 subject"),
    ],
)
def test_arguments_that_have_no_meaning(flags, message, model, tmp_path):
    """One line, no traceback."""
    np.save(tmp_path / "landmarks.npy", LANDMARKS)
    export_safetensors(model.state_dict(), tmp_path / "own.safetensors")
    flags = ["--checkpoint", str(tmp_path / "own.safetensors"), "--landmarks", str(tmp_path / "landmarks.npy"), *flags]
    with pytest.raises(SystemExit, match=f"OptionError: .*{message}"):
        run_command(lambda: embed.main(["--patches", "p", "--out", "f.npz", "--device", "cpu", *flags]))

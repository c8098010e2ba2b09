"""DrasCLR's patches: intensities, both layouts, which samples make up a step, and what augmentation does to them."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch
from drasclr_patches import LANDMARKS, TABLE, origin, told, write_subjects
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from zoo.entries.drasclr import atlas, data
from zoo.entries.drasclr import patches as patches_module
from zoo.entries.drasclr.augment import Augment
from zoo.entries.drasclr.data import Patches, above_window, scale
from zoo.entries.drasclr.patches import group, group_file, grouped_subjects
from zoo.errors import InputContractError, OptionError
from zoo.training.args import TrainArgs, run_command
from zoo.training.data import Batches, build_loader
from zoo.training.distributed import Processes


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Six subjects at five landmarks, every voxel saying whose and where it is: one file each, and grouped."""
    folder = tmp_path_factory.mktemp("cohort")
    group(write_subjects(folder / "patch"), folder / "grouped", at_once=2)
    return folder


def batches(patches, batch_size=4, passes=1, rank=0, world=1, **settings):
    """Keys of every step of a run."""
    args = TrainArgs(data="d", out="o", batch_size=batch_size, **settings)
    found = Batches(len(patches), args, Processes(rank, world, torch.device("cpu")), patches.order)
    steps = []
    for data_pass in range(passes):
        found.set_epoch(data_pass)
        steps += list(found)
    return steps


# Intensities


def test_the_window_becomes_minus_one_to_one():
    """(clip(HU, -1024, 240) + 1024) / 632 - 1, whatever the type; the ends of int16 do not overflow."""
    hu = [-32768, -1025, -1024, -392, 0, 240, 241, 32767]
    expected = np.float32([-1, -1, -1, 0, 1024 / 632 - 1, 1, 1, 1])
    for dtype in (np.int16, np.int32, np.float32, np.float64):
        scaled = scale(np.array(hu, dtype=dtype))
        assert scaled.dtype == np.float32
        np.testing.assert_allclose(scaled, expected, atol=1e-7)
    np.testing.assert_allclose(scale(np.uint16([0, 240, 65535])), expected[[4, 5, 5]], atol=1e-7)
    assert above_window([-2000, -1024, 300]).tolist() == [0, 0, 1264]


def test_what_is_no_intensity_is_refused():
    """NaN and infinity with their number, and what is no number; a mask is not in HU."""
    with pytest.raises(InputContractError, match="2 of 3 voxels are NaN or infinite"):
        scale([0.0, np.nan, np.inf])
    with pytest.raises(InputContractError, match="patches are bool: real numbers, in HU"):
        scale(np.ones(3, dtype=bool))


# One file per subject to one per landmark


def test_grouping_turns_subjects_into_landmarks(cohort):
    """Each file has one landmark of all subjects in sorted order, as int16, and the subjects are written down."""
    assert grouped_subjects(cohort / "grouped") == [f"s{i}" for i in range(6)]
    for landmark in range(len(LANDMARKS)):
        stored = np.load(group_file(cohort / "grouped", landmark))
        assert (stored.dtype, stored.shape) == (np.int16, (6, 32, 32, 32))
        assert all((stored[i] == told(landmark, i)).all() for i in range(6))
    assert len(list((cohort / "grouped").iterdir())) == len(LANDMARKS) + 1


def test_grouping_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    """A failure in the second of three lots leaves the first; the next call writes the others alone."""
    source, calls = write_subjects(tmp_path / "patch", 3), []
    write = patches_module._write_groups

    def failing(patches, out, subjects, landmarks):
        calls.append(list(landmarks))
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(patches, out, subjects, landmarks)

    monkeypatch.setattr(patches_module, "_write_groups", failing)
    with pytest.raises(KeyboardInterrupt):
        group(source, tmp_path / "out", at_once=2)
    first = group_file(tmp_path / "out", 0).stat().st_mtime_ns
    group(source, tmp_path / "out", at_once=2)
    assert calls == [[0, 1], [2, 3], [2, 3], [4]]
    assert group_file(tmp_path / "out", 0).stat().st_mtime_ns == first
    assert [int(np.load(group_file(tmp_path / "out", i))[2].max()) for i in range(5)] == [told(i, 2) for i in range(5)]


def test_the_command_takes_the_subjects_of_a_table(tmp_path):
    """In the table's order; a second call with others into the same folder is refused."""
    source = write_subjects(tmp_path / "patch", 4)
    (tmp_path / "subjects.csv").write_text("sid,severity\ns2,1\ns0,0\n")
    command = ["group", "--patches", str(source), "--out", str(tmp_path / "out")]
    data.main([*command, "--table", str(tmp_path / "subjects.csv")])
    assert grouped_subjects(tmp_path / "out") == ["s2", "s0"]
    assert np.load(group_file(tmp_path / "out", 3))[:, 0, 0, 0].tolist() == [told(3, 2), told(3, 0)]
    with pytest.raises(OptionError, match="has groups of other subjects than the 4"):
        data.main(command)


def test_fractions_are_rounded_and_nan_is_air(tmp_path):
    """Float patches become the nearest integers; NaN, which resampling leaves outside, -1024."""
    write_subjects(tmp_path / "patch", 2)
    patches = np.full((5, 32, 32, 32), -700.4, dtype=np.float64)
    patches[1, 0], patches[2] = np.nan, 99.6
    np.save(tmp_path / "patch" / "s1_patch.npy", patches)
    group(tmp_path / "patch", tmp_path / "out")
    assert np.load(group_file(tmp_path / "out", 1))[1, :2, 0, 0].tolist() == [-1024, -700]
    assert np.load(group_file(tmp_path / "out", 2))[1].max() == 100


def spoil(patches):
    return {
        "too large": patches.astype(np.int32) + 40000,
        "infinite": np.where(patches == patches.max(), np.inf, patches),
        "a landmark too few": patches[1:],
        "of another size": patches[:, :-1],
        "words": patches.astype(str),
    }


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("too large", r"subject s1: values from \d+ to \d+ do not fit int16"),
        ("infinite", r"subject s1: values from .* to inf do not fit int16"),
        ("a landmark too few", r"1 of 3 subjects have other patches than s0.*s1 \(4, 32, 32, 32\)"),
        ("of another size", r"s1_patch.npy holds int16 \(5, 31, 32, 32\); real numbers \(n, 32, 32, 32\)"),
        ("words", r"s1_patch.npy holds <U\d+ \(5, 32, 32, 32\)"),
    ],
)
def test_a_subject_that_cannot_be_grouped_is_named(tmp_path, fault, message):
    """The error has the subject, and no half file is left."""
    source = write_subjects(tmp_path / "patch", 3)
    np.save(source / "s1_patch.npy", spoil(np.load(source / "s1_patch.npy"))[fault])
    with pytest.raises(InputContractError, match=message):
        group(source, tmp_path / "out")
    assert not list((tmp_path / "out").glob("patch_loc_*"))


def test_subjects_without_patches_are_refused(tmp_path):
    """A missing and a cut file are named; no subject, one twice and no lot at all are options that make no sense."""
    source = write_subjects(tmp_path / "patch", 2)
    with pytest.raises(InputContractError, match=r"2 of 3 subjects have no file <sid>_patch.npy in .*: s7, s9"):
        group(source, tmp_path / "out", subjects=["s9", "s0", "s7"])
    with pytest.raises(OptionError, match="1 of the subjects are named twice: s0"):
        group(source, tmp_path / "out", subjects=["s0", "s1", "s0"])
    for nobody, message in (
        ({"patches": tmp_path}, r"there are no files .* in .*: python -m .*preprocess writes them to OUT/patch$"),
        ({"patches": source, "subjects": []}, r"no subjects are named; files .* in .*: 2$"),
    ):
        with pytest.raises(OptionError, match=message):
            group(out=tmp_path / "out", **nobody)
    with pytest.raises(OptionError, match="--at-once 0"):
        group(source, tmp_path / "out", at_once=0)
    whole = (source / "s1_patch.npy").read_bytes()
    (source / "s1_patch.npy").write_bytes(whole[:-100])
    with pytest.raises(SystemExit, match=r"InputContractError: cannot read .*s1_patch\.npy"):
        run_command(lambda: data.main(["group", "--patches", str(source), "--out", str(tmp_path / "out")]))


# The data set


def test_neighbours_follow_the_rule():
    """The table that the tests below rely on is the atlas' own: nearest first, the smaller index among equals."""
    assert atlas.neighbours(LANDMARKS, 2).tolist() == TABLE.tolist()


@pytest.mark.slow
def test_an_item_is_what_the_method_takes(cohort):
    """Shapes, types and origin of every part; the index says landmark and subject."""
    patches = Patches(cohort / "grouped", TABLE)
    assert len(patches) == 5 * 6
    for location in range(5):
        for subject in (0, 5):
            item = patches[3, location * 6 + subject]
            assert {name: (tuple(v.shape), v.dtype) for name, v in item.items()} == {
                "query": ((1, 32, 32, 32), torch.float32),
                "key": ((1, 32, 32, 32), torch.float32),
                "neighbours": ((2, 32, 32, 32), torch.float32),
                "location": ((), torch.int64),
                "pass": ((), torch.int64),
            }
            assert (item["location"].item(), item["pass"].item()) == (location, 3)
            for view in (item["query"], item["key"]):
                assert np.unique(np.array(origin(view)).reshape(2, -1), axis=1).T.tolist() == [[location, subject]]
            beside = np.array(origin(item["neighbours"]))[:, :, 0, 0, 0]
            assert beside.tolist() == [TABLE[location].tolist(), [subject] * 2]


def test_some_landmarks_keep_their_neighbours(cohort):
    """A subset is renumbered from 0; its neighbours are those in the whole atlas, in the subset or not."""
    patches = Patches(cohort / "grouped", TABLE, locations=[4, 1])
    item = patches[0, 1 * 6 + 2]
    assert (len(patches), item["location"].item(), origin(item["query"][0, 0, 0, 0])) == (12, 1, (1, 2))
    assert origin(item["neighbours"][:, 0, 0, 0])[0].tolist() == [0, 2]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("order", ["shuffled", "upstream"])
def test_every_step_is_at_one_landmark_and_scored_there(cohort, workers, order):
    """Over two passes: the voxels of a batch are those of the landmark that its index names, and so are its neighbours.

    In the authors' code loader processes keep on reading the landmark that they began with, and without them the first
    batch of each landmark is that of the one before: either would show in the voxels.
    """
    patches = Patches(cohort / "grouped", TABLE, order=order)
    args = TrainArgs(data="d", out="o", batch_size=4, workers=workers)
    found = Batches(len(patches), args, Processes(0, 1, torch.device("cpu")), patches.order)
    loader, visited = build_loader(patches, workers, batch_sampler=found), []
    for data_pass in (0, 1):
        found.set_epoch(data_pass)
        for batch in loader:
            (location,) = batch["location"].unique().tolist()
            landmarks, subjects = origin(batch["query"][:, 0, 0, 0, 0])
            assert landmarks.tolist() == [location] * 4
            assert len(set(subjects.tolist())) == 4
            landmarks, other = origin(batch["neighbours"][:, :, 0, 0, 0])
            assert landmarks.tolist() == [TABLE[location].tolist()] * 4
            assert (other == subjects[:, None]).all()
            assert batch["pass"].tolist() == [data_pass] * 4
            visited.append(location)
    assert [sorted(visited[:5]), sorted(visited[5:])] == [list(range(5))] * 2


def test_a_pass_is_the_landmarks_and_the_subjects_anew(cohort):
    """Each landmark in one stretch, each subject there once; another pass and another seed have another order."""
    patches = Patches(cohort / "grouped", TABLE)
    steps = batches(patches, 2, passes=3)
    orders = []
    for data_pass in range(3):
        indices = [index for step in steps[15 * data_pass :][:15] for _, index in step]
        assert sorted(indices) == list(range(30))
        stretches = [{i // 6 for i in indices[start : start + 6]} for start in range(0, 30, 6)]
        assert all(len(stretch) == 1 for stretch in stretches)
        orders.append(tuple(indices))
    assert len(set(orders)) == 3
    assert batches(patches, 2) == steps[:15]
    assert batches(Patches(cohort / "grouped", TABLE, seed=1), 2) != steps[:15]


def test_subjects_that_fill_no_step_are_others_in_another_pass(cohort):
    """Of six subjects by four, two are left out at each landmark, not always the same."""
    steps = batches(Patches(cohort / "grouped", TABLE), 4, passes=4)
    assert [len(step) for step in steps] == [4] * 20
    left = {tuple(sorted(set(range(6)) - {index % 6 for _, index in step})) for step in steps}
    assert all(len(subjects) == 2 for subjects in left)
    assert len(left) > 3


def test_the_authors_order(cohort):
    """Landmarks one after the other, each beginning with the subject after the last of the one before; every pass."""
    patches = Patches(cohort / "grouped", TABLE, order="upstream")
    steps = [[divmod(index, 6) for _, index in step] for step in batches(patches, 4, passes=2)]
    assert steps[:3] == [
        [(0, 0), (0, 1), (0, 2), (0, 3)],
        [(1, 4), (1, 5), (1, 0), (1, 1)],
        [(2, 2), (2, 3), (2, 4), (2, 5)],
    ]
    assert steps[:5] == steps[5:]


def test_processes_share_a_step_of_one_landmark(cohort):
    """The union over two processes, and over accumulated parts, is the step of one process."""
    patches = Patches(cohort / "grouped", TABLE)
    whole = batches(patches, 4, passes=2)
    shares = [batches(patches, 4, passes=2, rank=rank, world=2) for rank in (0, 1)]
    assert [[*chain(*parts)] for parts in zip(*shares, strict=True)] == whole
    parts = batches(patches, 4, passes=2, accumulate=2)
    assert [first + second for first, second in zip(parts[::2], parts[1::2], strict=True)] == whole


def test_a_batch_larger_than_the_cohort_is_refused(cohort):
    """The message says that a step is at one landmark: 30 patches do not help."""
    with pytest.raises(OptionError, match=r"6 subject\(s\) in .* do not fill one step of --batch-size 8: all"):
        batches(Patches(cohort / "grouped", TABLE), 8)


def test_folders_that_are_not_this_cohort_are_refused(cohort, tmp_path):
    """No files, files missing, more landmarks than known, other numbers of subjects, and landmarks that are none."""
    with pytest.raises(
        InputContractError, match=r"0 landmarks, but 5 are expected, and 5 of 5 needed files are missing"
    ):
        Patches(tmp_path / "nowhere", TABLE)
    with pytest.raises(InputContractError, match=r"5 landmarks, but 3 are expected\..*--landmarks"):
        Patches(cohort / "grouped", TABLE[:3])
    part = tmp_path / "part"
    part.mkdir()
    for i in (0, 1, 2):
        group_file(part, i).symlink_to(group_file(cohort / "grouped", i))
    assert len(Patches(part, TABLE, locations=[0, 2])) == 12
    with pytest.raises(InputContractError, match=r"1 of 4 needed files are missing: patch_loc_4\.npy"):
        Patches(part, TABLE, locations=[0, 4])
    np.save(group_file(part, 4), np.zeros((3, 32, 32, 32), dtype=np.int16))
    with pytest.raises(InputContractError, match=r"equally many subjects .*, not \[3, 6\]"):
        Patches(part, TABLE, locations=[0, 4])
    for wrong in ([5], [0, 0], [-1], []):
        with pytest.raises(OptionError, match="different landmarks from 0 to 4 are expected"):
            Patches(cohort / "grouped", TABLE, locations=wrong)
    with pytest.raises(OptionError, match="order must be one of shuffled, upstream, not 'sorted'"):
        Patches(cohort / "grouped", TABLE, order="sorted")


def test_nan_in_a_group_is_said_with_the_subject(tmp_path):
    """Groups of floats that the authors' code wrote may hold it; the message has subject and landmark."""
    write_subjects(tmp_path / "patch", 2)
    group(tmp_path / "patch", tmp_path / "out")
    values = np.load(group_file(tmp_path / "out", 3)).astype(np.float32)
    values[1, 0, 0, 0] = np.nan
    np.save(group_file(tmp_path / "out", 3), values)
    with pytest.raises(InputContractError, match=r"subject s1, landmarks \[3\]: 1 of 32768 voxels are NaN"):
        Patches(tmp_path / "out", TABLE, locations=[3])[0, 1]


# Augmentation


def texture(channels=1, seed=0):
    """Smooth patches (C, 32, 32, 32) from 0 to 1264, as `above_window` returns them."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*[np.linspace(0, 3, 32)] * 3, indexing="ij")
    waves = [np.sin(x * a + y * b + z * c) for a, b, c in rng.uniform(0.5, 2, (channels, 3))]
    return torch.from_numpy(np.float32(632 * (1 + np.array(waves))))


def state(seed):
    return np.random.RandomState(seed)


@pytest.mark.slow
def test_affine_is_one_map_for_all_channels_within_its_ranges():
    """Read off three ramps near the middle, where no border is seen: shift, size and turn of 120 draws.

    MONAI scales, shifts, then turns: p -> R (S p + t). Each of the nine numbers is uniform, so the largest of 120 draws
    comes within 5 % of its limit (in 49 of 50 runs, of which this is one), and none goes beyond it but by rounding.
    """
    ramps = torch.from_numpy(np.float32(np.indices((32, 32, 32))))
    augment, draws, drawn = Augment("a"), state(1), []
    for _ in range(120):
        cube = augment(ramps, draws)[:, 14:18, 14:18, 14:18].double().numpy()
        shift = cube.mean((1, 2, 3)) - 15.5
        if np.abs(shift).max() < 12.5:  # else the cube may touch the border
            jacobian = np.array([np.diff(cube, axis=axis).mean((1, 2, 3)) for axis in (1, 2, 3)]).T
            sizes = np.linalg.norm(jacobian, axis=0)
            turn = Rotation.from_matrix(jacobian / sizes)
            drawn.append([*turn.inv().apply(shift) / 12, *(sizes - 1) / 0.1, *turn.as_euler("XYZ", degrees=True) / 10])
    assert len(drawn) > 100
    most = np.abs(drawn).max(0)
    assert (most < 1.001).all(), most
    assert (most > 0.95).all(), most
    assert (np.abs(np.corrcoef(np.transpose(drawn))) < 0.4).sum() == 72, "nine numbers drawn each for itself"


def test_affine_repeats_the_border():
    """Nothing comes in from outside but what lies at the border: no value is new."""
    patch = texture(2)
    changed = [Augment("a")(patch, state(seed)) for seed in range(5)]
    assert all(not torch.equal(new, patch) for new in changed)
    for channel in (0, 1):
        low, high = patch[channel].min() - 1e-2, patch[channel].max() + 1e-2
        assert all(low <= new[channel].min() <= new[channel].max() <= high for new in changed)


@pytest.mark.slow
def test_noise_has_a_quarter_of_the_patches_and_a_random_strength():
    """Of 400 draws 25 % have noise (standard error 2 %), of strengths spread over 0 to 50 HU."""
    flat, augment, draws = torch.full((2, 32, 32, 32), 600.0), Augment("g"), state(3)
    strengths = np.array([augment(flat, draws).std().item() for _ in range(400)])
    noisy = strengths[strengths > 0]
    assert 0.17 < len(noisy) / 400 < 0.33
    assert noisy.max() < 50.5
    assert noisy.min() < 5
    assert noisy.max() > 40


def test_contrast_keeps_the_range_of_all_channels_together():
    """A quarter of the draws; the least and greatest value of both channels stay, those of one channel need not."""
    patches = torch.cat([texture() / 2, texture(seed=1)])
    augment, draws = Augment("c"), state(4)
    changed = [new for _ in range(200) if not torch.equal(new := augment(patches, draws), patches)]
    assert 30 < len(changed) < 70
    for new in changed:
        torch.testing.assert_close(new.amin(), patches.amin(), atol=0.1, rtol=0)
        torch.testing.assert_close(new.amax(), patches.amax(), atol=0.1, rtol=0)
    middles = [new[0].amax().item() / patches[0].amax().item() for new in changed]
    assert min(middles) < 0.8
    assert max(middles) > 1.1


def test_views_are_plain_tensors_of_either_recipe():
    """Float32 without meta data, in new memory or not; letters that are no change are refused by name."""
    for recipe in ("agc", "gc", "a", ""):
        view = Augment(recipe)(texture(2), state(0))
        assert type(view) is torch.Tensor
        assert not isinstance(view, MetaTensor)
        assert (view.dtype, tuple(view.shape)) == (torch.float32, (2, 32, 32, 32))
    assert torch.equal(Augment("")(texture(), state(0)), texture())
    with pytest.raises(OptionError, match=r"augmentations 'afge' have e, f: a, g, c are expected"):
        Augment("afge")


@pytest.mark.slow
def test_draws_follow_from_seed_pass_and_index(tmp_path):
    """The same whichever process asks and in which order; the two views, passes, samples and seeds differ."""
    group(write_subjects(tmp_path / "patch", 4, textured=True), tmp_path / "out")

    def items(seed=0):
        return Patches(tmp_path / "out", TABLE, augment=Augment(), seed=seed)

    first = items()[0, 5]
    again = items()
    again[1, 2]
    second = again[0, 5]
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["query"], first["key"])
    for other in (items()[1, 5], items(seed=1)[0, 5]):
        assert not torch.equal(first["query"], other["query"])
        assert not torch.equal(first["neighbours"], other["neighbours"])
    assert first["query"].abs().max() < 1.6  # noise and contrast go a little beyond [-1, 1]
    patches, keys = items(), [(0, i) for i in (3, 8, 13, 18)]
    inside = [patches[key]["query"] for key in keys]
    loaded = torch.utils.data.DataLoader(patches, 2, sampler=keys, num_workers=2)
    assert torch.equal(torch.cat([batch["query"] for batch in loaded]), torch.stack(inside))
    assert len({view.sum().item() for view in inside}) == 4

"""The synthetic abdomens: every organ is there and in its place, densities tell little, all follows from the seed."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from zoo.entries.monai_ssl import phantom
from zoo.entries.monai_ssl.cohort import ORGANS, read_cases, read_datalists
from zoo.entries.monai_ssl.phantom import LEAST_VOXELS, PARTS, draw_patient, draw_positions, main
from zoo.entries.monai_ssl.phantom_anatomy import BONES, COLON, PASSING, VISCERA, Shape
from zoo.entries.monai_ssl.phantom_canvas import (
    COARSE,
    SHAPE,
    SPACING,
    Canvas,
    Move,
    draw_move,
    ellipsoid,
    find_box,
    tube,
)
from zoo.errors import OptionError

COUNTS = {"unlabelled": 2, "training": 3, "validation": 1, "test": 1}
FLAGS = ["--unlabelled", "2", "--train", "3", "--val", "1", "--test", "1"]


def number(organ):
    return ORGANS.index(organ)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Folder of a small cohort."""
    out = tmp_path_factory.mktemp("abdomens") / "cohort"
    main(["--out", str(out), *FLAGS])
    return out


@pytest.fixture(scope="module")
def patients(cohort):
    """The labelled volumes: HU and labels of each."""
    found = [
        (nib.load(cohort / "images" / path.name), nib.load(path)) for path in sorted((cohort / "labels").iterdir())
    ]
    return [(image, np.asarray(image.dataobj), np.asarray(label.dataobj)) for image, label in found]


@pytest.mark.slow
def test_cohort_holds_what_was_asked_for(cohort):
    """Volumes of all parts, labels of those that have some, and the word that they are synthetic."""
    names = {part: [f"{part}{i:04d}.nii.gz" for i in range(count)] for part, count in COUNTS.items()}
    assert {p.name for p in (cohort / "images").iterdir()} == {name for part in names.values() for name in part}
    labelled = {name for part, of in names.items() if part != "unlabelled" for name in of}
    assert {p.name for p in (cohort / "labels").iterdir()} == labelled
    facts = json.loads((cohort / "cohort.json").read_text())
    assert facts["synthetic"] is True
    assert (facts["generator"], facts["seed"], facts["volumes"]) == (1, 0, COUNTS)
    assert (cohort / "overview.png").stat().st_size > 10_000


@pytest.mark.slow
def test_lists_are_those_of_the_recipes(cohort):
    """The recipes read the lists; the short one has the first training volumes and judges on the same cases."""
    images = read_datalists(cohort / "pretrain.json", ("training", "validation"), cohort)
    assert {part: [e["image"].name for e in of] for part, of in images.items()} == {
        "training": ["unlabelled0000.nii.gz"],
        "validation": ["unlabelled0001.nii.gz"],
    }
    everything, few = (read_cases(cohort / name, cohort) for name in ("labelled.json", "labelled_2.json"))
    assert [len(everything[part]) for part in ("train", "val", "test")] == [3, 1, 1]
    assert few == everything | {"train": everything["train"][:2]}


@pytest.mark.slow
def test_every_organ_is_in_every_volume(patients):
    """All 13, each with some voxels; nothing else is labelled."""
    for _, _, labels in patients:
        counts = np.bincount(labels.ravel())
        assert len(counts) == len(ORGANS)
        assert counts.min() >= LEAST_VOXELS
        assert counts.argmax() == 0
        assert counts[1:].argmax() == number("liver") - 1


@pytest.mark.slow
def test_organs_lie_where_they_do_in_people(patients):
    """By the file's own affine: liver right, spleen left, gullet above the pancreas, aorta left of the vena cava."""
    for image, _, labels in patients:
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        centres = {o: np.argwhere(labels == i).mean(0) @ image.affine[:3, :3].T for i, o in enumerate(ORGANS)}
        right, front, up = zip(*centres.values(), strict=True)
        right, front, up = (dict(zip(ORGANS, axis, strict=True)) for axis in (right, front, up))
        assert right["spleen"] < right["left kidney"] < right["aorta"] < right["inferior vena cava"] < right["liver"]
        assert right["left kidney"] < right["left adrenal gland"] < right["aorta"]
        assert right["aorta"] < right["right adrenal gland"]
        assert right["inferior vena cava"] < right["right kidney"]
        assert max(front["left kidney"], front["right kidney"]) < front["stomach"]
        assert front["aorta"] < front["pancreas"]
        assert up["pancreas"] < up["oesophagus"]
        assert up["right kidney"] < up["liver"]


@pytest.mark.slow
def test_densities_are_those_of_ct(patients):
    """Air, fat, soft tissue, bone, lung, each where it must be and in HU."""
    for _, volume, labels in patients:
        assert volume.dtype == np.int16
        assert volume.shape == SHAPE
        assert abs(np.median(volume[:3, -3:]) + 1000) < 20
        assert volume.min() >= -1024
        assert 250 < volume.max() < 1500
        for organ in ("liver", "spleen", "left kidney", "right kidney", "pancreas"):
            assert 10 < np.median(volume[labels == number(organ)]) < 250, organ
        assert ((volume > -140) & (volume < -60)).mean() > 0.05
        assert ((volume > -900) & (volume < -750)).sum() > 500


def best_interval_dice(volume, labels):
    """Dice of each organ by the interval of HU that is best for it when the truth is known."""
    edges = np.arange(-1000, 601, 5)
    everywhere, scores = np.histogram(volume, edges)[0], []
    below = np.concatenate([[0], everywhere.cumsum()])
    upper = np.triu_indices(len(edges), 1)
    for i in range(1, len(ORGANS)):
        within = np.concatenate([[0], np.histogram(volume[labels == i], edges)[0].cumsum()])
        hits, found = (np.subtract.outer(x, x).T[upper] for x in (within, below))
        scores.append((2 * hits / (found + (labels == i).sum())).max())
    return scores


@pytest.mark.slow
def test_density_alone_does_not_tell_an_organ(patients):
    """The best interval for each organ and volume, chosen by the truth, finds little: no rule by value finds more."""
    scores = np.array([best_interval_dice(volume, labels) for _, volume, labels in patients])
    assert scores.mean() < 0.25
    assert scores.max() < 0.8
    assert scores[:, number("oesophagus") - 1].max() < 0.1
    assert scores[:, number("pancreas") - 1].max() < 0.3


@pytest.mark.slow
def test_organs_overlap_in_density(patients):
    """Spleen, liver, kidneys and pancreas share values: no two of them can be told apart in all patients."""
    organs = ["spleen", "liver", "left kidney", "pancreas"]
    for a, one in enumerate(organs):
        for other in organs[a + 1 :]:
            ranges = [
                [np.percentile(volume[labels == number(o)], (5, 95)) for o in (one, other)]
                for _, volume, labels in patients
            ]
            assert any(max(x[0], y[0]) < min(x[1], y[1]) for x, y in ranges), (one, other)


@pytest.mark.slow
def test_patients_differ(patients):
    """In size of organs, place, and density."""
    sizes = np.array([[(labels == i).sum() for i in range(1, len(ORGANS))] for _, _, labels in patients])
    assert (sizes.max(0) > 1.1 * sizes.min(0)).all()
    liver = [np.argwhere(labels == number("liver")).mean(0) for _, _, labels in patients]
    assert np.std(liver, axis=0).max() > 0.5
    medians = [np.median(volume[labels == number("liver")]) for _, volume, labels in patients]
    assert np.ptp(medians) > 5


@pytest.mark.slow
def test_a_patient_follows_from_seed_part_and_index(cohort):
    """How many others there are plays no part; another number of any gives another patient."""
    again = draw_patient(np.random.default_rng([0, PARTS.index("test"), 0]))
    np.testing.assert_array_equal(np.asarray(nib.load(cohort / "images" / "test0000.nii.gz").dataobj), again.volume)
    np.testing.assert_array_equal(np.asarray(nib.load(cohort / "labels" / "test0000.nii.gz").dataobj), again.labels)
    everyone = [np.asarray(nib.load(p).dataobj) for p in sorted((cohort / "images").iterdir())]
    everyone.append(draw_patient(np.random.default_rng([1, PARTS.index("test"), 0])).volume)
    assert all((a != b).mean() > 0.5 for i, a in enumerate(everyone) for b in everyone[:i])


@pytest.mark.slow
def test_version_one_stays_as_it_is(cohort):
    """A change of what is drawn is a new version; roundings of another machine are none."""
    volume = np.asarray(nib.load(cohort / "images" / "test0000.nii.gz").dataobj)
    labels = np.asarray(nib.load(cohort / "labels" / "test0000.nii.gz").dataobj)
    assert phantom.VERSION == 1
    assert volume.mean() == pytest.approx(-522.7899, abs=0.05)
    counts = [232746, 787, 1161, 992, 214, 475, 12179, 3377, 1202, 1276, 212, 677, 32, 30]
    np.testing.assert_allclose(np.bincount(labels.ravel()), counts, atol=3)


@pytest.mark.slow
def test_a_patient_that_lacks_an_organ_is_drawn_anew(monkeypatch):
    """Until each has enough voxels: the first draw of this one has an organ of 8."""
    monkeypatch.setattr(phantom, "LEAST_VOXELS", 9)
    patient = draw_patient(np.random.default_rng([0, PARTS.index("test"), 2]))
    assert np.bincount(patient.labels.ravel(), minlength=len(ORGANS)).min() >= 9


def test_depth_is_a_distance():
    """Of a ball, an ellipsoid's surface, and a straight tube of one radius; negative outside."""
    points = np.random.default_rng(0).normal(0, 20, (3, 6, 6, 6)).astype(np.float32)
    ball = ellipsoid(points, (1, 2, 3), (15, 15, 15))
    away = np.linalg.norm(points - np.array([1, 2, 3]).reshape(3, 1, 1, 1), axis=0)
    np.testing.assert_allclose(ball, 15 - away, atol=1e-3)
    tips = np.array([[30, 0, 0], [0, 5, 0], [0, 0, -10]], dtype=np.float32).T
    np.testing.assert_allclose(ellipsoid(tips.reshape(3, 1, 1, 3), (0, 0, 0), (30, 5, 10)), 0, atol=1e-4)
    line = tube(points, (((0, 0, -400), 8), ((0, 0, 0), 8), ((0, 0, 400), 8)))
    np.testing.assert_allclose(line, 8 - np.hypot(*points[:2]), atol=1e-3)


def test_tubes_taper_and_bend():
    """At its points the depth is the radius there."""
    line = (((0, 0, 0), 12), ((30, 10, 0), 8), ((50, 40, 10), 5))
    ends = np.array([line[0][0], line[-1][0]], dtype=np.float32).T.reshape(3, 1, 1, 2)
    np.testing.assert_allclose(tube(ends, line).ravel(), [12, 5], atol=1e-3)


def undeformed():
    """The reference anatomy's own places (3, W, D, H)."""
    axes = [SPACING * (np.arange(n, dtype=np.float32) - (n - 1) / 2) for n in SHAPE]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


@pytest.fixture
def empty():
    """A canvas with nothing on it, where nothing is deformed."""
    return Canvas(np.random.default_rng(0), undeformed(), np.ones(3, np.float32) / 3)


@pytest.mark.slow
def test_shapes_lie_inside_their_box():
    """What is left out of the arithmetic is not part of the shape."""
    rng, shares = np.random.default_rng(3), []
    places = draw_positions(rng)
    for shape in (BONES[3], COLON[1], VISCERA[0], VISCERA[1], PASSING[0], PASSING[-1]):
        move = draw_move(rng, shape)
        box = find_box(move.back(places[:, ::COARSE, ::COARSE, ::COARSE]), shape)
        inside = move.depth(places, shape) > -SPACING
        outside = inside.copy()
        outside[box] = False
        assert inside.any()
        assert not outside.any()
        shares.append(inside[box].size / inside.size)
    assert np.mean(shares) < 0.5


def test_a_shape_is_painted_where_it_is(empty):
    """A ball has a ball's volume; outside the field not even a voxel is painted."""
    centre = np.zeros(3, np.float32)
    empty.moves["ball"] = Move(centre, centre, np.eye(3, dtype=np.float32), np.ones(3, np.float32))
    empty.paint_shapes([Shape("liver", "ball", 6, ellipsoids=(((0, 0, 900), (30, 30, 30)),))])
    assert not empty.labels.any()
    empty.paint_shapes([Shape("liver", "ball", 6, ellipsoids=(((0, 0, 0), (30, 30, 30)),))])
    assert (empty.labels == 6).sum() == pytest.approx(4 / 3 * np.pi * 30**3 / SPACING**3, rel=0.05)
    covered = ((empty.hu + 1000) / (empty.hu.max() + 1000)).sum()  # partial voxels count in part
    assert covered == pytest.approx(4 / 3 * np.pi * 30**3 / SPACING**3, rel=0.02)


def test_what_keeps_labels_changes_densities_alone(empty):
    """Vessels of the liver are liver."""
    liver = [shape for shape in VISCERA if shape.group == "liver"]
    empty.paint_shapes(liver[:1])
    labels, hu = empty.labels.copy(), empty.hu.copy()
    empty.paint_shapes(liver[1:])
    assert len(liver) > 1
    np.testing.assert_array_equal(empty.labels, labels)
    assert (empty.hu != hu).any()


def test_hollow_organs_have_a_wall_contents_and_gas_in_front(empty):
    """All of it is labelled; gas lies in front of what is not gas."""
    for shape in (VISCERA[0],) * 8:  # each time with other contents
        empty.paint_shapes([shape])
        inside = empty.labels == number("stomach")
        gas, front = inside & (empty.hu < -800), empty.positions[1]
        if gas.any():
            break
    assert shape.hollow
    assert 0 < gas.sum() < 0.5 * inside.sum()
    fluid = inside & (empty.hu > -50)
    assert np.median(front[gas]) > np.median(front[fluid])


@pytest.mark.parametrize(
    "flags", [["--unlabelled", "1"], ["--train", "1"], ["--val", "0"], ["--test", "0"], ["--train", "-3"]]
)
def test_too_few_volumes_are_refused(tmp_path, flags):
    """Before anything is written."""
    with pytest.raises(OptionError, match="expected at least 2 unlabelled, 2 training"):
        main(["--out", str(tmp_path / "cohort"), *flags])
    assert not (tmp_path / "cohort").exists()


@pytest.mark.slow
def test_a_folder_with_files_is_refused(cohort):
    """The cohort that is there stays."""
    with pytest.raises(OptionError, match="not empty"):
        main(["--out", str(cohort), *FLAGS])

"""Where the transform puts every kind of volume, what it makes of the values, and what it refuses."""

import logging
import pickle
from dataclasses import replace
from itertools import permutations, product

import nibabel
import numpy as np
import pytest
import torch
from brains import GRID, MARKER, PUBLISHED, SIZE, SMALL, brain, image, world
from dicom_files import write_series

from zoo.commands.import_rules import resized_input
from zoo.entry import Preprocessing
from zoo.errors import InputContractError, OptionError
from zoo.images.volumes import read_volume, z_score
from zoo.loading import load_transform
from zoo.registry import get_entry
from zoo.transforms.grid import to_atlas
from zoo.transforms.image import build_transform

CT = Preprocessing(
    ("CT",), (), units="HU", value_range=(-1.0, 1.0), orientation="RAS", spacing=(2, 2, 2), window=(-1024, 240)
)
TILT = np.array([[1, 0, 0, 0], [0, 1, 0.2, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # each slice a fifth of a row further on
ORIENTATIONS = ["".join(axes) for names in permutations(("RL", "AP", "IS")) for axes in product(*names)]


def turned(codes, values=None, affine=GRID):
    """Return values and matrix with the axes pointing to `codes`, as a converter of orientations writes them."""
    plain = image(brain() if values is None else values, affine)
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt(codes))
    other = plain.as_reoriented(turn)
    return np.asarray(other.dataobj), other.affine


def messages(caplog, transform, volume):
    """Apply a transform and return what it logged."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, "zoo"):
        transform(volume)
    return [record.getMessage() for record in caplog.records]


# Reading


def test_every_container_of_one_map_gives_the_same_tensor(tmp_path):
    """Files, images, arrays and tensors of one map, in any float type that holds it, agree to the bit."""
    transform, values = build_transform(SMALL), np.float16(brain())
    expected = torch.from_numpy(z_score(values))[None]
    made = image(np.float32(values))
    for name in ("map.nii", "map.nii.gz", "pair.img"):
        nibabel.save(made, tmp_path / name)
    np.save(tmp_path / "map.npy", values[None])
    for same in (
        *(tmp_path / name for name in ("map.nii", "map.nii.gz", "pair.hdr", "map.npy")),
        str(tmp_path / "map.nii"),
        made,
        nibabel.Nifti2Image(np.float64(values), GRID),
        image(np.float32(values)[..., None]),
        *(values, np.float64(values)[None], values.astype(">f4"), np.asfortranarray(values)),
        *(torch.from_numpy(values), torch.from_numpy(values).double()[None]),
    ):
        result = transform(same)
        assert result.dtype == torch.float32
        assert torch.equal(result, expected)


def test_slope_and_intercept_of_the_header_are_applied(tmp_path):
    """SPM stores maps in 8 or 16 bits with a factor: half a step of it is the largest error."""
    made = image(brain())
    made.set_data_dtype("int16")
    nibabel.save(made, tmp_path / "map.nii")
    assert nibabel.load(tmp_path / "map.nii").dataobj.slope != 1
    expected = build_transform(SMALL)(brain())
    assert (build_transform(SMALL)(tmp_path / "map.nii") - expected).abs().max() < 1e-3


def test_the_input_is_left_as_it_was():
    """Neither the array nor the image that is passed changes, and the result is memory of its own."""
    values = brain()
    kept = values.copy()
    made = image(values)
    for same in (values, made, torch.from_numpy(values)):
        build_transform(SMALL)(same).zero_()
    plain = build_transform(replace(CT, spacing=None, orientation=None, window=None))
    plain(image(values - 1000)).zero_()
    assert np.array_equal(values, kept)
    assert not made.in_memory or np.array_equal(made.get_fdata(), kept)


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (np.zeros((2, 24, 29, 25)), r"shape \(2, 24, 29, 25\): one volume .* pass one at a time"),
        (np.zeros((3, 1, 24, 29, 25)), "pass one at a time, for example array"),
        (
            torch.zeros(224, 224),
            r"Tensor \(224, 224\) torch.float32 has shape .* an image or a few slices are not a volume",
        ),
        (np.zeros((24, 29, 3)), "at least 8 voxels a side"),
        (brain() * 1j, "complex64 values: real numbers"),
        (torch.from_numpy(brain()) * 1j, "complex64 values: real numbers"),
        (brain().astype(str), "real numbers are expected"),
        (image(np.stack([brain()] * 2, -1)), r"shape \(24, 29, 25, 2\).*four_to_three"),
        (image(np.zeros(SIZE, [("R", "u1"), ("G", "u1"), ("B", "u1")])), "holds colours: real numbers"),
        (image(np.zeros(SIZE, np.complex64)), "complex64: real numbers"),
        (nibabel.MGHImage(brain(), GRID), "MGHImage: NIfTI is expected"),
        (brain().tolist(), "cannot take list as a volume"),
        (None, "cannot take NoneType as a volume"),
    ],
)
def test_what_is_not_one_volume_of_real_numbers_is_refused(volume, message):
    """The message says what came and how to get to one volume."""
    with pytest.raises(InputContractError, match=message):
        build_transform(SMALL)(volume)


def test_files_that_cannot_be_read_are_named(tmp_path):
    """Missing, text, cut short, pickled: each says which file, and what is read."""
    transform = build_transform(SMALL)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.nii"):
        transform(tmp_path / "nowhere.nii")
    (tmp_path / "page.nii.gz").write_text("<html>not found</html>")
    nibabel.save(image(brain()), tmp_path / "whole.nii")
    nibabel.save(image(brain()), tmp_path / "whole.nii.gz")
    for name in ("whole.nii", "whole.nii.gz"):
        (tmp_path / f"cut-{name}").write_bytes((tmp_path / name).read_bytes()[:9000])
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "empty.npy").write_bytes(b"")
    for name in ("page.nii.gz", "cut-whole.nii", "cut-whole.nii.gz", "objects.npy", "empty.npy"):
        with pytest.raises(InputContractError, match=f"cannot read .*{name}"):
            transform(tmp_path / name)


# The place of a file in the atlas


@pytest.mark.parametrize("code", ["scanner", "aligned", "mni"])
def test_a_file_on_the_grid_is_taken_to_the_bit_whatever_its_code(code):
    """SPM and CAT12 write code 2 into their normalised maps; rounding of the header to float32 is no difference."""
    assert torch.equal(build_transform(SMALL)(image(brain(), GRID + 1e-6, code))[0], torch.from_numpy(z_score(brain())))


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_axes_in_any_order_and_direction_give_the_same_tensor(codes):
    """All 48 ways to store one map, left- and right-handed, agree to the bit: nothing is mirrored or interpolated."""
    values, affine = turned(codes)
    assert nibabel.aff2axcodes(affine) == tuple(codes)
    assert torch.equal(build_transform(SMALL)(image(values, affine))[0], torch.from_numpy(z_score(brain())))


@pytest.mark.parametrize("codes", ["LAS", "RAS", "PIR", "SLA", "IPL"])
@pytest.mark.parametrize("voxel", [4.0, 7.5, 9.0])
def test_a_marker_lands_on_the_voxel_of_its_place(codes, voxel):
    """The peak drawn in the right hemisphere is found at the voxel that the matrix says, from any grid in MNI152."""
    shape = tuple(int(200 / voxel) + extra for extra in (0, 3, 1))
    plain = np.array([[voxel, 0, 0, -101.0], [0, voxel, 0, -130.0], [0, 0, voxel, -77.0], [0, 0, 0, 1]])
    values, affine = turned(codes, brain(shape, plain), plain)
    result = build_transform(SMALL)(image(values, affine, "mni"))[0].numpy()
    expected = np.linalg.solve(GRID, (*MARKER, 1))[:3]
    assert tuple(expected) == (6, 14, 12)
    assert np.abs(np.argwhere(result == result.max())[0] - expected).max() <= (1 if voxel > 7.5 else 0)


@pytest.mark.slow
def test_the_published_grid_and_a_map_of_two_millimetres(tmp_path):
    """From a right-handed file to y-Aware's left-handed grid: shape, mean, deviation, and the marker's voxel."""
    plain = np.array([[2.0, 0, 0, -90], [0, 2.0, 0, -126], [0, 0, 2.0, -72], [0, 0, 0, 1]])
    nibabel.save(image(brain((91, 109, 91), plain), plain, "mni"), tmp_path / "map.nii.gz")
    result = build_transform(PUBLISHED)(tmp_path / "map.nii.gz")
    assert result.shape == (1, 121, 145, 121)
    assert abs(float(result.mean())) < 1e-5  # float32 over two million voxels
    assert float(result.std(correction=0)) == pytest.approx(1, abs=1e-5)
    (found,) = np.argwhere(result[0].numpy() == result.max().item())
    assert np.abs(found - ((90 - 42) / 1.5, (126 - 18) / 1.5, (72 + 21) / 1.5)).max() <= 1.5


@pytest.mark.parametrize("angle", [0.0, 0.2])
def test_interpolation_is_linear_in_the_world(angle):
    """A ramp over the world is the same ramp on the grid, from an oblique and anisotropic file too; outside is 0.

    Linear interpolation reproduces it but for float32: 1e-4 of a range of 2.
    """
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ np.diag([4.0, 6.0, 5.0]), (-110.0, -150.0, -60.0)

    def ramp(shape, matrix):
        x, y, z = world(shape, matrix)
        return (1 + x / 400 + y / 500 - z / 600).astype(np.float32)

    shape = (50, 60, 40)
    found = to_atlas(read_volume(image(ramp(shape, affine), affine, "mni")), SIZE, GRID, "")
    voxels = np.tensordot(np.linalg.inv(affine) @ GRID, np.stack([*np.indices(SIZE), np.ones(SIZE)]), 1)[:3]
    last = np.array(shape).reshape(3, 1, 1, 1) - 1
    inside = ((voxels >= 0) & (voxels <= last)).all(0)
    outside = ((voxels < -1) | (voxels > last + 1)).any(0)
    assert inside.sum() > 10_000
    assert outside.sum() > 100
    assert np.abs(found - ramp(SIZE, GRID))[inside].max() < 1e-4
    assert (found[outside] == 0).all()


@pytest.mark.parametrize(("start", "stop"), [((2, 3, 1), (22, 27, 24)), ((-3, -2, -1), (25, 30, 28))])
def test_a_smaller_or_larger_box_of_the_same_voxels_is_padded_or_cut(start, stop):
    """CAT12's newer box is 113 x 137 x 113 voxels of the same 1.5 mm: no value changes, around it is 0.

    A scanner's file is not believed on that ground: the origin of a centred one may be whole by chance.
    """
    affine = GRID.copy()
    affine[:3, 3] = GRID[:3] @ (*start, 1)
    boxed = brain(tuple(np.subtract(stop, start)), affine)
    expected = np.zeros(SIZE, np.float32)
    box = tuple(slice(max(0, a), b) for a, b in zip(start, stop, strict=True))
    expected[box] = brain()[box]
    assert expected.sum() > 0.9 * brain().sum()
    for code in ("aligned", "mni"):
        result = build_transform(SMALL)(image(boxed, affine, code))
        assert torch.equal(result[0], torch.from_numpy(z_score(expected)))
    with pytest.raises(InputContractError, match="does not say that it is in MNI152"):
        build_transform(SMALL)(image(boxed, affine, "scanner"))


def test_cat12s_newer_box_gives_no_warning(caplog):
    """It leaves out 6 to 12 mm of background on all sides, which is no brain cut off."""
    affine = np.array([[-1.5, 0, 0, 84], [0, 1.5, 0, -120], [0, 0, 1.5, -72], [0, 0, 0, 1]])
    assert messages(caplog, build_transform(PUBLISHED), image(brain((113, 137, 113), affine), affine)) == []


def test_the_form_that_names_the_atlas_is_gone_by():
    """An sform with code 4 comes first, then a qform with code 4, then whichever there is."""
    other = GRID.copy()
    other[:3, 3] += (15, -7.5, 22.5)  # whole voxels, so that either would be taken
    moved = np.roll(brain(), (2, 1, -3), (0, 1, 2))
    for sform, qform, on_grid in (
        ((GRID, "mni"), (other, "mni"), brain()),
        ((other, "aligned"), (GRID, "mni"), brain()),
        ((GRID, "aligned"), (other, "scanner"), brain()),
        ((None, 0), (GRID, "scanner"), brain()),
        ((other, "mni"), (GRID, "scanner"), moved),
    ):
        made = nibabel.Nifti1Image(moved if on_grid is moved else brain(), GRID)
        made.set_sform(*sform)
        made.set_qform(*qform)
        found = to_atlas(read_volume(made), SIZE, GRID, "")
        assert np.array_equal(found, brain() if on_grid is not moved else np.roll(moved, (-2, -1, 3), (0, 1, 2)))


def test_a_file_in_another_space_is_refused():
    """A brain of the right values whose header does not lead to the atlas: what to run, and how to say that it does."""
    for code in ("scanner", "aligned", "talairach"):
        for affine in (GRID + 0.75 * np.eye(4, k=3), np.diag([8.0, 8, 8, 1]) @ np.eye(4)):
            with pytest.raises(
                InputContractError, match=r"does not say that it is in MNI152.*Run CAT12.*set_sform"
            ) as caught:
                build_transform(SMALL)(image(brain(), affine, code))
            assert "(24, 29, 25) of 7.5 x 7.5 x 7.5 mm" in str(caught.value)


def test_a_voxel_is_whole_to_a_thousandth():
    """Half a thousandth of a voxel is rounding of a header, two are another grid."""
    for offset, is_taken in ((0.0005, True), (0.002, False)):
        affine = GRID + 7.5 * offset * np.eye(4, k=3)
        if is_taken:
            assert torch.equal(build_transform(SMALL)(image(brain(), affine)), build_transform(SMALL)(brain()))
        else:
            with pytest.raises(InputContractError, match="does not say that it is in MNI152"):
                build_transform(SMALL)(image(brain(), affine))


def test_an_array_must_have_the_shape_of_the_grid():
    """Without a place in the world another shape cannot be brought to it."""
    for values in (brain((29, 24, 25)), brain((48, 58, 50), GRID / 2)):
        with pytest.raises(InputContractError, match=r"without an affine, .* must be those of the grid \(24, 29, 25\)"):
            build_transform(SMALL)(values)


def test_a_header_that_could_mean_two_things_or_nothing_is_refused():
    """A mirrored brain is an error, not a guess: handedness must be one, and the matrix must be that of a scan."""
    mirrored = GRID @ np.diag([-1.0, 1, 1, 1])
    two = image(brain())
    two.set_qform(mirrored, code="scanner")
    none = image(brain())
    none.set_sform(None, code=0)
    flat, metres, sheared, broken = GRID.copy(), GRID / 1000, GRID.copy(), GRID.copy()
    flat[2], sheared[0, 1], broken[0, 0] = flat[1], 7.5, np.nan
    for made, message in (
        (two, "its sform and its qform are mirror images of each other"),
        (none, r"has no affine \(sform and qform have code 0\)"),
        *((image(brain(), matrix, "mni"), "a meaningless affine") for matrix in (flat, metres, sheared, broken)),
    ):
        with pytest.raises(InputContractError, match=message):
            build_transform(SMALL)(made)


def test_a_monai_tensor_brings_its_place_along():
    """What MONAI's LoadImage returns is turned like the file it came from, and refused where that is elsewhere."""
    meta = pytest.importorskip("monai.data.meta_tensor").MetaTensor
    values, affine = turned("RAS")
    tensor = meta(torch.from_numpy(values.copy())[None], affine=torch.from_numpy(affine))
    assert torch.equal(build_transform(SMALL)(tensor), build_transform(SMALL)(brain()))
    elsewhere = torch.from_numpy(np.diag([7.0, 7.0, 7.0, 1.0]))
    with pytest.raises(InputContractError, match=r"MetaTensor .* does not say that it is in MNI152"):
        build_transform(SMALL)(meta(torch.from_numpy(values.copy()), affine=elsewhere))


def test_a_small_field_of_view_and_coarse_voxels_are_warned_of(caplog):
    """What cuts the brain, what is twice as coarse or fine, and what misses the atlas altogether."""
    cut = GRID.copy()
    cut[:3, 3] = GRID[:3] @ (0, 0, 9, 1)
    said = messages(caplog, build_transform(SMALL), image(brain()[:, :, 9:], cut))
    assert any("ends inside the brain at the start of axis 2: the field of view" in line for line in said)
    fine = np.array([[3.5, 0, 0, -90], [0, 3.5, 0, -126], [0, 0, 3.5, -72], [0, 0, 0, 1]])
    said = messages(caplog, build_transform(SMALL), image(brain((52, 62, 52), fine), fine, "mni"))
    assert [line for line in said if "voxels of 3.5 x 3.5 x 3.5 mm, far from the 7.5 x 7.5 x 7.5 mm" in line] == said
    assert said
    away = GRID.copy()
    away[:3, 3] += 750
    with pytest.raises(InputContractError, match="is empty where the atlas lies"):
        build_transform(SMALL)(image(brain(), away))


# Values of grey-matter maps


def raw_scan(high=255.0, whole=True):
    """Return what a T1 looks like: skull, noise around it, a scanner's grey scale, another place."""
    rng = np.random.default_rng(0)
    values = high * np.clip(brain() / 2 + 0.05 * rng.random(SIZE), 0, 1)
    return image((values.round() if whole else values).astype(np.float32), np.diag([7.0, 7, 7, 1]), "scanner")


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (raw_scan(), r"whole numbers from 0 to \d+, as raw scans"),
        (raw_scan(800, whole=False), r"values from .* as raw scans"),
        (raw_scan(1, whole=False), "does not say that it is in MNI152"),
        (brain() * 100, "as raw scans, label maps and percentages have"),
        (np.round(3 * brain() / brain().max()).astype(np.uint8), "whole numbers from 0 to 3, as raw scans, label maps"),
        (z_score(brain()), "no negative values. If the volume is z-scored already"),
        (image(z_score(brain())), "no negative values"),
    ],
)
def test_what_is_no_density_is_refused_with_what_to_run(volume, message):
    """A raw T1 above all, however it is scaled: the message names CAT12 and the file to pass."""
    with pytest.raises(InputContractError, match=message) as caught:
        build_transform(SMALL)(volume)
    assert "Run CAT12 (or SPM12) on the T1 first" in str(caught.value)
    assert "mwp1*.nii" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.where(brain() > 1, np.nan, brain()), r"\d+ NaN or infinite value"),
        (np.where(brain() > 1, np.inf, brain()), r"\d+ NaN or infinite value"),
        (np.zeros(SIZE), r"is constant \(0 everywhere\)"),
        (np.full(SIZE, 0.5), r"is constant \(0.5 everywhere\)"),
        (brain() + 1.0, r"adds up to \d+ ml of grey matter, more than a skull holds"),
    ],
)
def test_values_that_cannot_be_right_are_refused(values, message):
    """In arrays, tensors and files alike."""
    for volume in (values, torch.from_numpy(values), image(values)):
        with pytest.raises(InputContractError, match=message):
            build_transform(SMALL)(volume)


def test_odd_maps_are_taken_with_a_warning(caplog):
    """A mask, a map that is not modulated, too little and too much grey matter; an ordinary map is silent."""
    transform, values = build_transform(SMALL), brain()
    assert messages(caplog, transform, values) == []
    assert messages(caplog, transform, values - 0.005) == []  # what resampling with splines leaves below zero
    for odd, message in (
        (np.uint8(values > 0.7), "whole numbers from 0 to 1, a mask"),
        (values / values.max(), "not modulated (wp1)"),
        (values + 2 * (values == values.max()), "is the registration right?"),
        (values * 0.3, "ml of grey matter, where brains have 300 to 1100"),
        (values * 2, "ml of grey matter, where brains have 300 to 1100"),
    ):
        assert any(message in line for line in messages(caplog, transform, odd))


def test_nothing_is_called_odd_of_what_is_refused(caplog):
    """A map that is neither modulated nor in the atlas is refused, and no more said; a quiet transform says nothing."""
    values = brain() / brain().max()
    caplog.clear()
    with pytest.raises(InputContractError, match="does not say that it is in MNI152"):
        build_transform(SMALL)(image(values, np.diag([7.0, 7, 7, 1]), "scanner"))
    assert not caplog.records
    assert messages(caplog, build_transform(SMALL), values)
    assert messages(caplog, replace(build_transform(SMALL), quiet=True), values) == []


def test_the_amount_of_grey_matter_is_in_millilitres(caplog):
    """Density times the volume of a voxel, on the grid, whatever the voxels of the file were."""
    fine = np.array([[5.0, 0, 0, -90], [0, 5.0, 0, -126], [0, 0, 5.0, -72], [0, 0, 0, 1]])
    for made in (image(0.2 * brain()), image(0.2 * brain((36, 43, 36), fine), fine, "mni")):
        (line,) = messages(caplog, build_transform(SMALL), made)
        amount = float(line.partition(" adds up to ")[2].split()[0])
        assert amount == pytest.approx(0.2 * brain().sum() * 7.5**3 / 1000, rel=0.03)  # the surface is sampled anew


def test_scanner_files_are_refused_where_a_map_is_due(tmp_path):
    """A DICOM folder or file is a raw scan: it says what to run before anything is decoded."""
    write_series(tmp_path / "series")
    for path in (tmp_path / "series", next((tmp_path / "series").iterdir())):
        with pytest.raises(InputContractError, match=r"as raw scans come.*Run CAT12"):
            build_transform(SMALL)(path)


# z-score


def test_the_z_score_is_that_of_the_authors():
    """(x - mean) / (population deviation + 1e-8), with the background, in float64, to float32 rounding."""
    values = brain().astype(np.float64)
    for dtype in (np.float16, np.float32, np.float64):
        given = values.astype(dtype)
        exact = given.astype(np.float64)
        found = z_score(given[None])
        assert found.dtype == np.float32
        assert found.shape == (1, *SIZE)
        assert np.abs(found[0] - (exact - exact.mean()) / (exact.std() + 1e-8)).max() < 2e-6


def test_the_z_score_does_not_depend_on_layout_or_scale():
    """Another order in memory gives the same bits; integers and large offsets keep their precision."""
    values = brain()
    assert np.array_equal(z_score(np.asfortranarray(values)), z_score(values))
    whole = np.arange(1000, dtype=np.int16).reshape(10, 10, 10)
    assert z_score(whole).std() == pytest.approx(1, abs=1e-6)
    assert np.array_equal(z_score(whole + 10_000), z_score(whole))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_z_score_of_nothing_is_refused(value):
    """NaN, infinities of either or both signs, and constants, which rounding must not pass off as varying."""
    values = brain()
    values[3, 4, 5], values[6, 7, 8] = value, -value
    with pytest.raises(InputContractError, match="NaN or infinite"):
        z_score(values)
    for constant in (0.0, 0.1, 1e6 / 3):
        with pytest.raises(InputContractError, match="is constant"):
            z_score(np.full(SIZE, constant, np.float32))


# CT in Hounsfield units


def scan(shape=(40, 36, 20), spacing=(1.0, 1.5, 3.0), codes="LPS"):
    """Return the HU of a smooth chest-like scan, and its matrix."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = (-20, 10, -300)
    x, y, z = world(shape, affine)
    hu = -1000 + 1100 * np.exp(-(((x - 3) / 12) ** 2 + ((y - 30) / 15) ** 2)) + 3 * (z + 270)
    return turned(codes, hu.round().astype(np.int16), affine)


def test_a_ct_is_turned_resampled_and_windowed_as_monai_does_it():
    """Orientation, Spacing and ScaleIntensityRange of MONAI on the same scan; both interpolate in float32 or better."""
    transforms = pytest.importorskip("monai.transforms")
    meta = pytest.importorskip("monai.data.meta_tensor").MetaTensor
    values, affine = scan()
    values = np.maximum(values, -1024)  # what lies below is padding, which the transform makes air and MONAI keeps
    expected = meta(torch.from_numpy(np.float32(values))[None], affine=torch.from_numpy(affine))
    for step in (
        transforms.Orientation(axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
        transforms.Spacing(pixdim=(2, 2, 2), mode="bilinear", padding_mode="border", dtype=np.float64),
        transforms.ScaleIntensityRange(a_min=-1024, a_max=240, b_min=-1, b_max=1, clip=True),
    ):
        expected = step(expected)
    found = build_transform(CT)(image(values, affine, "scanner"))
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert (found - expected.as_tensor()).abs().max() < 1e-4


def test_a_ct_that_fits_keeps_its_values():
    """Without turn or spacing to change, only the window acts: -1024 HU becomes -1, 240 becomes 1."""
    values, affine = scan(spacing=(2, 2, 2), codes="RAS")
    values[0, 0, 0], values[1, 1, 1] = -3000, 3000
    found = build_transform(CT)(image(values, affine))[0].numpy()
    assert np.allclose(found, np.clip(values, -1024, 240) / 632 + 392 / 632, atol=1e-6)
    assert (found.min(), found.max()) == (-1, 1)
    unwindowed = build_transform(replace(CT, window=None))(image(values, affine))[0].numpy()
    assert np.array_equal(unwindowed, np.maximum(values, -1024))  # below is padding, which is made air


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (image(np.uint8(np.linspace(0, 255, 8000).reshape(20, 20, 20))), "values from 0 to 255: HU are expected"),
        (image(np.linspace(0, 1, 8000).reshape(20, 20, 20)), "HU are expected, where air is -1000"),
        (scan()[0], "without the size and direction of its voxels"),
        (image(scan()[0], scan()[1] @ TILT), "not at right angles"),
    ],
)
def test_what_is_no_ct_in_hu_is_refused(volume, message):
    """0 to 255, fractions, no spacing, a tilted gantry."""
    with pytest.raises(InputContractError, match=message):
        build_transform(CT)(volume)


def test_thick_slices_are_warned_of(caplog):
    """5 mm where 2 are due."""
    said = messages(caplog, build_transform(CT), image(*scan(spacing=(1.5, 1.5, 5.0))))
    assert any("has voxels of 1.5 x 1.5 x 5 mm, far from the 2 x 2 x 2 mm" in line for line in said)


# DICOM series


def test_a_series_becomes_hu_in_its_place(tmp_path):
    """Slices in order of their position, columns first, stored values rescaled, DICOM's left and back turned over."""
    hu = (2 * np.arange(12 * 10 * 9).reshape(12, 10, 9) - 1000).astype(np.int16)
    (write_series(tmp_path / "series", hu) / "notes.txt").write_text("no DICOM")
    found = read_volume(tmp_path / "series")
    assert np.array_equal(found.values, hu)
    expected = [[-0.7, 0, 0, 50], [0, -0.9, 0, -20], [0, 0, 2.5, -400], [0, 0, 0, 1]]
    assert np.allclose(found.affine, expected)
    transform = build_transform(replace(CT, spacing=(1, 1, 2)))
    # atol: the NIfTI header has its matrix in float32
    assert torch.allclose(transform(tmp_path / "series"), transform(image(hu, np.array(expected))), atol=1e-5)


def test_a_sagittal_series_is_placed_by_its_directions(tmp_path):
    """Rows run to the back, columns downwards, slices to the left: the corner voxels are where DICOM says."""
    write_series(tmp_path / "series", step=(2.5, 0, 0), ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    found = read_volume(tmp_path / "series")
    # The normal of these slices points to the patient's right, so the first slice is the one furthest left.
    assert nibabel.aff2axcodes(found.affine) == ("P", "I", "R")
    first = found.affine @ (0, 0, 0, 1)
    assert np.allclose(first[:3], (50 - 8 * 2.5, -20, -400))
    assert np.allclose(found.affine @ (11, 9, 8, 1), (50, -20 - 11 * 0.7, -400 - 9 * 0.9, 1))
    assert found.values[0, 0, 0] == found.values.flat[0] == (8 - 1000) // 2 * 2


def test_a_tilted_gantry_is_refused_where_it_would_be_resampled(tmp_path):
    """Each slice a little further to the front than the last: the stack is no box."""
    write_series(tmp_path / "series", step=(0, -0.8, 2.5))
    with pytest.raises(InputContractError, match="not at right angles, as a CT with a tilted gantry"):
        build_transform(CT)(tmp_path / "series")


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"Modality": "PT"}, "holds modality PT, positron emission tomography: a CT or MR series is expected"),
        ({"RescaleSlope": None}, "lacks RescaleSlope, so its position or its HU are unknown"),
        ({"ImagePositionPatient": None}, "lacks ImagePositionPatient"),
        ({"ImagePositionPatient": [0, 0, 0]}, "lie 0 to 0 mm apart: even steps are expected"),
        ({"Rows": 11}, "cannot read the pixels of"),
    ],
)
def test_a_folder_that_is_no_stack_of_ct_is_refused(elements, message, tmp_path):
    """Another modality, no HU, no place, one place for all, pixels that are not there."""
    with pytest.raises(InputContractError, match=message):
        build_transform(CT)(write_series(tmp_path / "series", **elements))


def test_a_folder_with_gaps_or_several_series_is_refused(tmp_path):
    """A slice missing, a slice twice, two series, an empty folder, one file of a series."""
    gap = write_series(tmp_path / "gap")
    (gap / "IM0004").unlink()
    with pytest.raises(InputContractError, match=r"8 slices lie 2.5 to 5 mm apart"):
        build_transform(CT)(gap)
    twice = write_series(tmp_path / "twice", SeriesInstanceUID="1.2.3")
    more = write_series(tmp_path / "more", SeriesInstanceUID="1.2.3")
    (twice / "copy").write_bytes((more / "IM0003").read_bytes())
    with pytest.raises(InputContractError, match="IM0003 and copy lie at one position"):
        build_transform(CT)(twice)
    two = write_series(tmp_path / "two")
    (two / "other").write_bytes((gap / "IM0000").read_bytes())
    with pytest.raises(InputContractError, match="2 series or stacks: "):
        build_transform(CT)(two)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputContractError, match=r"holds 0 DICOM slice\(s\)"):
        build_transform(CT)(tmp_path / "empty")
    with pytest.raises(InputContractError, match=r"one DICOM file, a slice: .* pass the folder"):
        build_transform(CT)(two / "IM0001")


# The transform itself


def test_printing_shows_the_steps():
    """A user can read what will happen to a volume."""
    text = repr(build_transform(PUBLISHED))
    for part in (
        "VolumeTransform",
        "modulated grey-matter density, 0 to 3",
        "121 x 145 x 121 voxels of 1.5 x 1.5 x 1.5 mm in MNI152, axes LAS",
        "z-score over the whole volume",
        "float32 (1, 121, 145, 121): grey-matter density",
    ):
        assert part in text
    for part in ("DICOM", "axes to RAS, 2 x 2 x 2 mm", "clip to [-1024, 240], scale to [-1, 1]", "(1, any size)"):
        assert part in repr(build_transform(CT))


def test_it_survives_a_trip_to_a_worker():
    """Data loaders pickle it."""
    transform = build_transform(SMALL)
    again = pickle.loads(pickle.dumps(transform))
    assert again == transform
    assert torch.equal(again(brain()), transform(brain()))


def test_y_aware_takes_maps_on_the_published_grid():
    """CAT12's left-handed grid of 1.5 mm, z-scored, for every tag."""
    for name in ("yaware-densenet121", "yaware-densenet121.bhb10k-2021"):
        assert load_transform(name).preprocessing == PUBLISHED


def test_a_manifest_record_may_name_another_grid():
    """JSON lists, nested ones too, become the tuples of the entry."""
    facts = PUBLISHED.override({"size": list(SIZE), "affine": GRID.tolist()})
    assert facts == SMALL
    assert hash(facts) == hash(SMALL)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (
            replace(SMALL, units="density"),
            r"no transform makes .* in 'density'.* in 'modulated grey-matter density' or",
        ),
        (replace(SMALL, channels=("a", "b")), "volumes of one channel"),
        (replace(SMALL, size=()), "an affine is that of a grid of three sizes"),
        (replace(CT, size=(96, 96, 96)), "a volume brought to these has its own size"),
        (replace(SMALL, size=(4, 4, 4, 4)), "three sizes"),
        (replace(SMALL, size=(), affine=None), "without a grid"),
        (replace(SMALL, affine=SMALL.affine[:3]), "four rows of four"),
        (replace(SMALL, affine=((0.0,) * 4,) * 3 + SMALL.affine[3:]), "not singular"),
        (replace(SMALL, spacing=(1, 1, 1)), "the affine already fixes spacing and orientation"),
        (replace(SMALL, resize=3, mean=(0.5,)), "'resize', 'mean'.* mean nothing for a volume"),
        (replace(SMALL, normalise="min-max"), "'min-max' mean nothing for a volume"),
        (replace(CT, window=(240, -1024)), "the smaller value is expected first"),
        (replace(CT, spacing=(1, 1)), "three lengths in mm"),
        (replace(CT, spacing=(1, 0, 1)), "three lengths in mm"),
        (replace(CT, orientation="LRS"), "one letter of each"),
        (
            Preprocessing(("grey",), (64, 64), window=(0, 1), spacing=(1, 1)),
            "spacing, window with size .* describe volumes",
        ),
    ],
)
def test_contradictory_facts_are_refused_when_the_transform_is_made(facts, message):
    """A wrong manifest record is found before the first volume."""
    with pytest.raises(OptionError, match=message):
        build_transform(facts)


def test_a_side_in_pixels_is_refused_for_a_model_of_volumes():
    """`zoo import --size` is for images; what a file of volumes was trained on is a grid."""
    entry = replace(get_entry("caid-resnet50"), name="volumes", preprocessing=PUBLISHED)
    with pytest.raises(OptionError, match="size=96 for 'volumes': it takes volumes"):
        resized_input(entry, 96)

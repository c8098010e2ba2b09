"""What the transform makes of every kind of image, and what it refuses."""

import logging
import pickle

import numpy as np
import pydicom
import pytest
import torch
from dicom_files import write_dicom
from PIL import Image
from pydicom.uid import JPEGLSLossless

from zoo.entry import Preprocessing
from zoo.errors import InputContractError, OptionError
from zoo.transforms.image import build_transform

FILM = Preprocessing(channels=("grey", "grey", "grey"), size=(224, 224), resize=256)
PLAIN = Preprocessing(channels=("grey",), size=(64, 64))  # 64 x 64 images pass through it unresized


def ramp(dtype, top, side=64):
    """Return a square image whose rows run from 0 to `top`."""
    return np.tile(np.linspace(0, top, side).astype(dtype)[:, None], (1, side))


def picture(height=300, width=280, seed=0):
    """Return smooth 8-bit noise: every value, no symmetry."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 7), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


# Values


@pytest.mark.parametrize(
    ("dtype", "top"),
    [("uint8", 255), ("uint16", 65535), ("int16", 32767), ("int8", 127), ("int32", 2**31 - 1), ("bool", 1)],
)
@pytest.mark.parametrize("container", [np.asarray, torch.tensor], ids=["array", "tensor"])
def test_integers_are_divided_by_their_types_maximum(dtype, top, container):
    """Full scale of any integer type becomes 1, zero stays 0."""
    values = np.zeros((64, 64), dtype=dtype)
    values[:, 32:] = top
    image = build_transform(PLAIN)(container(values))
    assert image.dtype == torch.float32
    assert image[:, :, :32].eq(0).all()
    assert image[:, :, 32:].eq(1).all()


def test_big_endian_read_only_and_flipped_arrays_are_read():
    """The layout in memory has no effect on the values."""
    values = ramp("uint16", 65535)
    expected = build_transform(PLAIN)(values)
    locked = values.copy()
    locked.flags.writeable = False
    for same in (values.astype(">u2"), locked, values[::-1].copy()[::-1], np.asfortranarray(values)):
        assert torch.equal(build_transform(PLAIN)(same), expected)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_in_range_pass_unchanged(dtype):
    """Floats in [0, 1] are not rescaled, whatever their own extremes are."""
    values = (0.2 + 0.5 * ramp("float64", 1)).astype(dtype)
    assert torch.equal(build_transform(PLAIN)(values)[0], torch.from_numpy(values.astype("float32")))


def test_rounding_beyond_the_range_is_clipped():
    """What resampling leaves just outside the range is brought back, silently."""
    values = ramp("float32", 1)
    values[0, 0], values[-1, -1] = -5e-4, 1 + 5e-4
    image = build_transform(PLAIN)(values)
    assert image.min() == 0
    assert image.max() == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (ramp("float32", 255), "values from 0 to 255; floats from 0 to 1 are expected. Values reach 255 on an 8-bit"),
        (ramp("float32", 4095), r"values from 0 to 4095; .*\(4095 for 12 bit"),
        (ramp("float32", 2) - 1, "values from -1 to 1; .* before any mean and deviation"),
        (np.where(ramp("float32", 1) > 0.5, np.nan, 0), "2048 NaN or infinite"),
        (np.where(ramp("float32", 1) > 0.5, np.inf, 0), "2048 NaN or infinite"),
        (ramp("int16", 2000) - 1000, "integers down to -1000"),
        (ramp("int64", 255), "64-bit integers of at most 255, .*astype.'uint8'"),
        (ramp("float32", 1) * 1j, "complex64 values: real numbers"),
        (ramp("float32", 1).astype(str), "real numbers are expected"),
        (torch.from_numpy(ramp("float32", 1)) * 1j, "complex64 values: real numbers"),
    ],
)
def test_values_that_cannot_be_right_are_refused(values, message):
    """The message says what came, what is expected, and the way from one to the other."""
    with pytest.raises(InputContractError, match=message):
        build_transform(PLAIN)(values)


def test_another_declared_range_is_kept():
    """Integers are scaled to the declared range, floats must already lie in it, and it appears in the message."""
    transform = build_transform(Preprocessing(channels=("grey",), size=(64, 64), value_range=(-1.0, 1.0)))
    image = transform(ramp("uint8", 255))
    assert (image.min(), image.max()) == (-1, 1)
    assert torch.allclose(transform(image), image, atol=1e-7)  # one float32 rounding on the way to a fraction and back
    with pytest.raises(InputContractError, match="floats from -1 to 1 are expected"):
        transform(image * 3)


def test_mean_and_deviation_are_applied_last():
    """Normalisation acts per channel on values already scaled to the range."""
    facts = Preprocessing(("grey",) * 3, (64, 64), mean=(0.5, 0.25, 0.0), std=(0.5, 0.5, 2.0))
    plain = build_transform(Preprocessing(("grey",) * 3, (64, 64)))(picture())
    expected = torch.stack([(plain[0] - 0.5) / 0.5, (plain[1] - 0.25) / 0.5, plain[2] / 2])
    assert torch.equal(build_transform(facts)(picture()), expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((64, 64), 90, np.uint8), "is constant"),
        (ramp("uint16", 4095), "hardly any contrast: it spans 0 to 0.0625"),
        (np.tile(ramp("uint8", 255), (1, 3)), "64 x 192: the centre crop discards more than half"),
    ],
)
def test_odd_images_are_taken_with_a_warning(values, message, caplog):
    """What a network can still take is logged, not refused."""
    with caplog.at_level(logging.WARNING, "zoo"):
        assert build_transform(FILM)(values).shape == (3, 224, 224)
    assert message in caplog.text


def test_an_ordinary_image_gives_no_warning(caplog):
    """Warnings are for the odd: a film-like image is silent."""
    with caplog.at_level(logging.WARNING, "zoo"):
        build_transform(FILM)(picture())
    assert not caplog.records


# Shapes


@pytest.mark.parametrize("shape", [(300, 280), (1, 300, 280), (3, 300, 280), (300, 280, 1), (300, 280, 3)])
def test_accepted_shapes_give_the_same_image(shape):
    """One grey image in any layout, array or tensor, gives one and the same result."""
    grey = picture()
    layout = np.broadcast_to(grey if shape[-1] > 3 else grey[..., None], shape).copy()
    expected = build_transform(FILM)(grey)
    assert torch.equal(build_transform(FILM)(layout), expected)
    assert torch.equal(build_transform(FILM)(torch.from_numpy(layout)), expected)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 64, 64), "For a batch, call the transform on each image"),
        ((2, 64, 64), "A volume of 2 slices"),
        ((40, 64, 64), "A volume of 40 slices: this network is 2D"),
        ((64, 64, 4), "leave out the alpha channel"),
        ((64,), "Index or reshape"),
        ((3, 3, 3), "3 x 3 pixels: at least 32 a side"),
        ((16, 300), "16 x 300 pixels: at least 32 a side"),
        ((0, 64), "0 x 64 pixels"),
    ],
)
def test_wrong_ranks_and_sizes_are_refused(shape, message):
    """A batch, a volume or a scrap is not one image, and the message says how to get one."""
    for image in (np.zeros(shape, np.uint8), torch.zeros(shape)):
        with pytest.raises(InputContractError, match=message):
            build_transform(FILM)(image)


@pytest.mark.parametrize("image", [None, b"bytes", [[0, 1], [2, 3]], 7])
def test_other_objects_are_refused(image):
    """Something that is no image is named by its type."""
    with pytest.raises(InputContractError, match=f"cannot take {type(image).__name__} as an image"):
        build_transform(FILM)(image)


# Geometry


def centroid(image):
    """Return the intensity-weighted centre (row, column) of `(1, H, W)`."""
    weights = image[0] / image.sum()
    rows, columns = torch.arange(weights.shape[0]), torch.arange(weights.shape[1])
    return float((weights.sum(1) * rows).sum()), float((weights.sum(0) * columns).sum())


@pytest.mark.parametrize(("height", "width"), [(512, 640), (640, 512), (200, 260), (224, 224)])
def test_a_marker_lands_where_geometry_says(height, width):
    """Resizing keeps pixel centres in proportion and the crop is central: a drawn square is found within half a pixel.

    Half a pixel is what integer sizes and an odd margin may shift; a transposed or uncentred crop errs by tens.
    """
    row, column = height // 2 - 40, width // 2 + 30
    image = np.zeros((height, width), np.uint8)
    image[row - 4 : row + 5, column - 4 : column + 5] = 255
    scale = 256 / min(height, width)
    expected = [(at + 0.5 - side / 2) * scale + 112 - 0.5 for at, side in ((row, height), (column, width))]
    grey = build_transform(Preprocessing(("grey",), (224, 224), resize=256))(image)
    assert centroid(grey) == pytest.approx(expected, abs=0.5)


def test_without_a_crop_the_whole_image_is_stretched_to_size():
    """`resize=None` keeps the corners."""
    image = np.zeros((300, 500), np.uint8)
    image[:30, :50] = 255
    output = build_transform(Preprocessing(("grey",), (60, 100)))(image)
    assert output.shape == (1, 60, 100)
    assert output[0, :5, :9].min() > 1 - 1e-6  # the square is 6 x 10 after a factor of 5, its rim is mixed
    assert output[0, 7:].eq(0).all()


def test_resizing_is_that_of_torchvision_on_floats():
    """The same size arithmetic, antialiasing and crop as torchvision's float pipeline."""
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    image = torch.from_numpy(picture(311, 413).copy())[None] / 255
    expected = functional.center_crop(functional.resize(image, [256], antialias=True), [224, 224])
    # atol: torchvision may call another kernel of the same filter, which sums in another order
    assert torch.allclose(build_transform(FILM)(image)[:1], expected, atol=1e-6)


def test_sixteen_bits_are_not_squeezed_through_eight():
    """Two grey levels that are one level in 8 bits stay apart."""
    values = ramp("uint16", 65535)
    values[:, :32], values[0, :] = 30000, 65535
    values[1:, 32:] = 30100
    image = build_transform(PLAIN)(values)
    assert image[0, 5, 40] - image[0, 5, 5] == pytest.approx(100 / 65535, rel=1e-3)


def test_output_range_type_and_repetition():
    """Three equal, contiguous float32 channels in [0, 1]."""
    image = build_transform(FILM)(picture())
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    assert torch.equal(image[0], image[1])
    assert torch.equal(image[0], image[2])
    assert 0 <= image.min() < image.max() <= 1


# Files and PIL images


def test_path_string_pil_array_and_tensor_agree_to_the_bit(tmp_path):
    """However the same pixels come in, the same tensor comes out."""
    grey = picture()
    Image.fromarray(grey).save(tmp_path / "film.png")
    path = tmp_path / "film.png"
    transform = build_transform(FILM)
    expected = transform(grey)
    for same in (path, str(path), Image.open(path), torch.from_numpy(grey.copy()), torch.from_numpy(grey / 255.0)):
        assert torch.equal(transform(same), expected)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "pgm"])
def test_lossless_formats_keep_every_value(suffix, tmp_path):
    """PNG, TIFF, BMP and PGM give the array that was written."""
    Image.fromarray(picture()).save(tmp_path / f"film.{suffix}")
    assert torch.equal(build_transform(FILM)(tmp_path / f"film.{suffix}"), build_transform(FILM)(picture()))


def test_jpeg_is_read_within_its_loss(tmp_path):
    """Quality 95 on a smooth image errs by a few of 255 levels at most."""
    Image.fromarray(picture()).save(tmp_path / "film.jpg", quality=95)
    error = build_transform(FILM)(tmp_path / "film.jpg") - build_transform(FILM)(picture())
    assert error.abs().max() < 4 / 255


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bit_files_are_divided_by_65535(suffix, tmp_path):
    """A 16-bit file equals its array, whether PIL reads it in mode I or I;16."""
    values = ramp("uint16", 65535)
    if suffix == "pgm":  # which Pillow writes since 11
        head = f"P5 {values.shape[1]} {values.shape[0]} 65535\n".encode()
        (tmp_path / "film.pgm").write_bytes(head + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(tmp_path / f"film.{suffix}")
    assert torch.equal(build_transform(PLAIN)(tmp_path / f"film.{suffix}"), build_transform(PLAIN)(values))
    assert torch.equal(build_transform(PLAIN)(Image.fromarray(values.astype("int32"))), build_transform(PLAIN)(values))


def test_sixteen_bit_tiff_whose_white_is_zero_is_turned_over(tmp_path):
    """The photometric tag of a TIFF is obeyed at 16 bits, where PIL leaves the stored values as they are."""
    values = ramp("uint16", 65535)
    Image.fromarray(65535 - values).save(tmp_path / "film.tif", tiffinfo={262: 0})
    assert torch.equal(build_transform(PLAIN)(tmp_path / "film.tif"), build_transform(PLAIN)(values))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "CMYK", "1", "F"])
def test_every_pil_mode_of_a_grey_image_is_that_grey_image(mode):
    """Palette, colour, opaque alpha, CMYK, bilevel and float forms of one picture agree."""
    grey = np.where(ramp("uint8", 255) > 127, np.uint8(255), np.uint8(0)) if mode == "1" else ramp("uint8", 255)
    image = Image.fromarray(grey)
    image = Image.fromarray(grey.astype("float32") / 255) if mode == "F" else image.convert(mode)
    assert torch.equal(build_transform(PLAIN)(image), build_transform(PLAIN)(grey))


def test_float_pil_images_keep_the_rule_of_floats():
    """Mode F is checked like any float."""
    with pytest.raises(InputContractError, match=r"Image \(mode F, 64 x 64\) has values from 0 to 255"):
        build_transform(PLAIN)(Image.fromarray(ramp("float32", 255)))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_refused(mode, tmp_path):
    """What lies behind a transparent pixel would be invented."""
    image = Image.fromarray(ramp("uint8", 255)).convert(mode)
    image.putpixel((5, 5), (*image.getpixel((5, 5))[:-1], 100))
    image.save(tmp_path / "film.png")
    with pytest.raises(InputContractError, match="transparent pixels"):
        build_transform(PLAIN)(tmp_path / "film.png")


def test_palette_with_a_transparent_colour_is_refused(tmp_path):
    """A transparent palette entry counts where a pixel uses it."""
    Image.fromarray(ramp("uint8", 255)).convert("P").save(tmp_path / "film.png", transparency=0)
    with pytest.raises(InputContractError, match="transparent pixels"):
        build_transform(PLAIN)(tmp_path / "film.png")


def test_colour_becomes_luminance_with_a_warning(caplog):
    """A coloured annotation is taken as PIL's luminance, and said; JPEG-like differences are not worth a word."""
    colour = np.repeat(ramp("uint8", 255)[..., None], 3, axis=2)
    colour[20:30, 20:30] = (255, 0, 0)
    with caplog.at_level(logging.WARNING, "zoo"):
        image = build_transform(PLAIN)(colour)
    assert "is a colour image (channels differ by up to 1.00)" in caplog.text
    expected = np.asarray(Image.fromarray(colour).convert("L")) / 255
    assert np.abs(image[0].numpy() - expected).max() <= 1 / 255  # PIL rounds to a level

    caplog.clear()
    nearly = np.repeat(picture(64, 64)[..., None] // 2, 3, axis=2)
    nearly[..., 0] += 2
    with caplog.at_level(logging.WARNING, "zoo"):
        build_transform(PLAIN)(nearly)
    assert not caplog.records


def test_the_exif_orientation_is_applied(tmp_path):
    """A photographed film that says it lies on its side is turned upright."""
    upright = picture(64, 64)
    exif = Image.Exif()
    exif[274] = 6  # the stored picture must be turned by 90 degrees clockwise
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "film.png", exif=exif)
    assert torch.equal(build_transform(PLAIN)(tmp_path / "film.png"), build_transform(PLAIN)(upright))


def test_integers_beyond_sixteen_bits_in_a_pil_image_are_refused():
    """Mode I is a 16-bit film in practice; anything else has no known full scale."""
    with pytest.raises(InputContractError, match="from 0 to 70000: 16-bit values"):
        build_transform(PLAIN)(Image.fromarray(ramp("int32", 70000)))


def test_stacks_of_frames_are_refused(tmp_path):
    """A file with several pages is not one image."""
    pages = [Image.fromarray(picture(64, 64, seed)) for seed in range(3)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(InputContractError, match="holds 3 frames"):
        build_transform(PLAIN)(tmp_path / "stack.tif")


def test_files_that_are_no_image(tmp_path):
    """Missing, folder, text, cut short: each says which file and what is read."""
    transform = build_transform(PLAIN)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        transform(tmp_path / "nowhere.png")
    with pytest.raises(InputContractError, match="is a folder"):
        transform(tmp_path)
    (tmp_path / "text.png").write_text("<html>not found</html>")
    with pytest.raises(InputContractError, match=r"cannot read .*text\.png as an image .*PNG, JPEG, .* DICOM"):
        transform(tmp_path / "text.png")
    Image.fromarray(picture()).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    with pytest.raises(InputContractError, match=r"cannot read .*cut\.png"):
        transform(tmp_path / "cut.png")


# DICOM


def test_dicom_is_told_by_content_and_scaled_by_its_stored_bits(tmp_path):
    """12 bits stored in 16 are divided by 4095, and the suffix does not matter."""
    values = ramp("uint16", 4095)
    expected = build_transform(PLAIN)((values / 4095).astype("float32"))
    for name in ("film.dcm", "IM000001", "film.png"):
        assert torch.equal(build_transform(PLAIN)(write_dicom(tmp_path / name, values, bits=12)), expected)


def test_monochrome1_is_inverted(tmp_path):
    """Both photometric interpretations of one film agree, to float32 rounding."""
    values = ramp("uint16", 4095)
    upright = build_transform(PLAIN)(write_dicom(tmp_path / "2", values, bits=12))
    inverted = build_transform(PLAIN)(write_dicom(tmp_path / "1", 4095 - values, bits=12, photometric="MONOCHROME1"))
    assert torch.allclose(upright, inverted, atol=1e-6)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_the_window_of_the_header_is_applied(photometric, tmp_path):
    """Below the window black, above it white, linear between (DICOM PS3.3 C.11.2.1.2.1), first window of several."""
    values = ramp("uint16", 4095)
    path = write_dicom(
        tmp_path / "film", values, bits=12, photometric=photometric, WindowCenter=[1500, 9], WindowWidth=[1001, 9]
    )
    expected = np.clip((values - 1499.5) / 1000 + 0.5, 0, 1)
    image = build_transform(PLAIN)(path)[0].numpy()
    assert np.abs(image - (1 - expected if photometric == "MONOCHROME1" else expected)).max() < 1e-6


def test_rescale_comes_before_the_window(tmp_path):
    """The window is in rescaled units, also for signed values."""
    values = ramp("int16", 4000) - 2000
    path = write_dicom(
        tmp_path / "film", values, bits=16, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=0.5, WindowWidth=1001
    )
    expected = np.clip((2.0 * values - 100) / 1000 + 0.5, 0, 1)
    assert np.abs(build_transform(PLAIN)(path)[0].numpy() - expected).max() < 1e-6


@pytest.mark.parametrize("window", [{}, {"WindowCenter": -2047.5, "WindowWidth": 4096}])
def test_a_negative_slope_turns_the_film_over(window, tmp_path):
    """The largest stored value is the smallest rescaled one: black, with or without a window over the full range."""
    values = ramp("uint16", 4095)
    path = write_dicom(tmp_path / "film", values, bits=12, RescaleSlope=-1, RescaleIntercept=0, **window)
    image = build_transform(PLAIN)(path)[0].numpy()
    # a window of 4096 integers maps 4095 steps; its edge values are half a step off
    assert np.abs(image - (4095.0 - values) / 4095).max() < 1e-3


def test_a_voi_lookup_table_is_applied(tmp_path):
    """Table entries are scaled by the table's own bit depth."""
    table = pydicom.Dataset()
    table.LUTDescriptor = [256, 0, 10]
    table.add_new("LUTData", "US", [int(v) for v in np.linspace(0, 1, 256) ** 2 * 1023])
    values = ramp("uint8", 255)
    path = write_dicom(tmp_path / "film", values, bits=8, VOILUTSequence=[table])
    expected = np.floor(np.linspace(0, 1, 256) ** 2 * 1023)[values] / 1023
    assert np.abs(build_transform(PLAIN)(path)[0].numpy() - expected).max() < 1e-6


@pytest.mark.parametrize("empty", ["item", "descriptor", "data", "sequence", "window", "rescale"])
def test_what_a_grey_scale_leaves_empty_counts_as_absent(empty, tmp_path):
    """As de-identified films have it: the scale is what the rest of the header says, here that of the stored bits."""
    table = pydicom.Dataset()
    if empty == "data":
        table.LUTDescriptor = [0, 0, 16]
        table.add_new("LUTData", "OW", b"")
    elif empty == "descriptor":
        table.add_new("LUTData", "US", [1, 2, 3])
    elements = {
        "sequence": {"VOILUTSequence": [], "ModalityLUTSequence": []},
        "window": {"WindowCenter": None, "WindowWidth": 100},
        "rescale": {"RescaleSlope": None, "RescaleIntercept": 3},
    }.get(empty, {"VOILUTSequence": [table], "ModalityLUTSequence": [table]})
    values = ramp("uint16", 4095)
    image = build_transform(PLAIN)(write_dicom(tmp_path / "film", values, bits=12, **elements))[0].numpy()
    assert np.abs(image - values / 4095).max() < 1e-6


def test_the_table_beside_an_empty_one_is_applied(tmp_path):
    """The first that has values; a table shorter than it says is an error."""
    table = pydicom.Dataset()
    table.LUTDescriptor = [256, 0, 8]
    table.add_new("LUTData", "US", list(range(255, -1, -1)))
    values = ramp("uint8", 255)
    path = write_dicom(tmp_path / "film", values, bits=8, VOILUTSequence=[pydicom.Dataset(), table])
    assert np.abs(build_transform(PLAIN)(path)[0].numpy() - (1 - values / 255)).max() < 1e-6
    table.LUTDescriptor, table.LUTData = [0, 0, 8], [1, 2, 3]
    with pytest.raises(InputContractError, match="the grey scale in its DICOM header has no meaning"):
        build_transform(PLAIN)(write_dicom(tmp_path / "short", values, bits=8, VOILUTSequence=[table]))


def test_a_film_without_preamble_is_read(tmp_path):
    """Cut off as some archives do; the pixels are the same."""
    path = write_dicom(tmp_path / "film", ramp("uint16", 4095), bits=12)
    (tmp_path / "bare").write_bytes(path.read_bytes()[132:])
    assert torch.equal(build_transform(PLAIN)(tmp_path / "bare"), build_transform(PLAIN)(path))


def test_dicom_that_is_no_frontal_film(tmp_path, caplog):
    """A CT slice is refused by its modality; a lateral film is warned of."""
    values = np.tile(np.arange(64, dtype=np.uint16) * 64, (64, 1))
    with pytest.raises(InputContractError, match="modality CT"):
        build_transform(PLAIN)(write_dicom(tmp_path / "ct", values, bits=12, Modality="CT"))
    build_transform(PLAIN)(write_dicom(tmp_path / "side", values, bits=12, Modality="DX", ViewPosition="LL"))
    assert "lateral" in caplog.text


def test_colour_dicom_is_read_as_luminance(tmp_path, caplog):
    """A secondary capture in RGB follows the rule of colour images."""
    colour = np.repeat(ramp("uint8", 255)[..., None], 3, axis=2)
    colour[10:20, 10:20] = (0, 255, 0)
    path = write_dicom(tmp_path / "film", colour, bits=8, photometric="RGB")
    with caplog.at_level(logging.WARNING, "zoo"):
        assert torch.allclose(build_transform(PLAIN)(path), build_transform(PLAIN)(colour), atol=1e-6)
    assert "is a colour image" in caplog.text


def test_raw_detector_output_is_named(tmp_path, caplog):
    """FOR PROCESSING images are logarithmic or linear exposure, not films."""
    path = write_dicom(tmp_path / "film", ramp("uint16", 4095), bits=12, PresentationIntentType="FOR PROCESSING")
    with caplog.at_level(logging.WARNING, "zoo"):
        build_transform(PLAIN)(path)
    assert "FOR PROCESSING" in caplog.text


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("shape", ["IDENTITY", "INVERSE", ""])
def test_a_header_that_contradicts_itself_on_black_and_white_is_warned_of(photometric, shape, tmp_path, caplog):
    """Read as its photometric interpretation says; the pairs of the standard are not warned of."""
    values = ramp("uint16", 4095)
    path = write_dicom(tmp_path / "film", values, bits=12, photometric=photometric, PresentationLUTShape=shape)
    plain = write_dicom(tmp_path / "plain", values, bits=12, photometric=photometric)
    with caplog.at_level(logging.WARNING, "zoo"):
        assert torch.equal(build_transform(PLAIN)(path), build_transform(PLAIN)(plain))
    contradicts = (photometric, shape) in (("MONOCHROME1", "IDENTITY"), ("MONOCHROME2", "INVERSE"))
    assert ("contradict each other" in caplog.text) == contradicts


def test_dicom_that_holds_no_single_image_is_refused(tmp_path):
    """Several frames, no pixels, too few pixels, a window without width: each says what is wrong with which file."""
    transform, values = build_transform(PLAIN), ramp("uint16", 4095)
    frames = write_dicom(tmp_path / "frames", np.stack([values, values]), bits=12, NumberOfFrames=2)
    with pytest.raises(InputContractError, match="frames holds 2 frames, one image is expected"):
        transform(frames)
    with pytest.raises(InputContractError, match="short: The number of bytes of pixel data is less"):
        transform(write_dicom(tmp_path / "short", values, bits=12, Rows=65))
    with pytest.raises(InputContractError, match="window: the grey scale in its DICOM header has no meaning"):
        transform(write_dicom(tmp_path / "window", values, bits=12, WindowCenter=0, WindowWidth=0))
    report = pydicom.dcmread(frames)
    del report.PixelData
    report.Modality = "SR"
    report.save_as(tmp_path / "report")
    with pytest.raises(InputContractError, match="report is DICOM without an image: modality SR"):
        transform(tmp_path / "report")


def test_a_missing_decoder_is_named(tmp_path):
    """A compression that nothing installed decodes says which it is and what to install."""
    path = write_dicom(tmp_path / "film", ramp("uint8", 255), bits=8, syntax=JPEGLSLossless)
    with pytest.raises(InputContractError, match=r"compressed as 'JPEG-LS Lossless.*pip install \"pylibjpeg\[all\]\""):
        build_transform(PLAIN)(path)


# The transform itself


def test_printing_shows_the_steps():
    """A user can read what will happen to an image."""
    text = repr(build_transform(FILM))
    for part in ("shorter side to 256", "centre 224 x 224", "[0, 1]", "float32 (3, 224, 224)", "normalise none"):
        assert part in text
    assert "mean (0.5,)" in repr(build_transform(Preprocessing(("grey",), (64, 64), mean=(0.5,), std=(0.5,))))


def test_it_survives_a_trip_to_a_worker():
    """Data loaders pickle it."""
    transform = build_transform(FILM)
    assert pickle.loads(pickle.dumps(transform)) == transform


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (Preprocessing(("grey",), (64, 64, 64)), "no transform makes an input of size"),
        (Preprocessing(("red", "green", "blue"), (64, 64)), "no transform makes .* channels"),
        (Preprocessing(("grey",), (64, 64), resize=60), "too little for a centre crop"),
        (Preprocessing(("grey",), (64, 64), mean=(0.1, 0.2)), r"mean has 2 value\(s\) for 1 channel"),
    ],
)
def test_contradictory_facts_are_refused_when_the_transform_is_made(facts, message):
    """A wrong manifest record is found before the first image."""
    with pytest.raises(OptionError, match=message):
        build_transform(facts)

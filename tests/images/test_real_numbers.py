"""Arrays and tensors of odd kinds: the same image or volume, or a sentence that says what to do; no other error."""

import warnings
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch._subclasses.fake_tensor import FakeTensorMode

from zoo.entry import PERCENTILES, Preprocessing
from zoo.errors import InputContractError
from zoo.images.volumes import read_volume
from zoo.transforms.image import build_transform

IMAGE = build_transform(Preprocessing(("grey",), (64, 64)))
SLICES = build_transform(Preprocessing(("grey",), (40, 48), units="percentiles", normalise=PERCENTILES, spacing=(1, 1)))
VALUES = np.random.default_rng(0).random((40, 48, 9), np.float32)
READERS = {
    "image": lambda made: IMAGE(made(VALUES[..., 0].copy())),
    "volume": lambda made: torch.from_numpy(read_volume(made(VALUES)).values),
    "slice": lambda made: SLICES(made(VALUES[..., 0].copy())),
    "slices": lambda made: SLICES(made(VALUES)),
}


def quantised(values, kind=torch.quint8):
    return torch.quantize_per_tensor(torch.from_numpy(values), 1 / 255, 0, kind)


def meta_tensor(values):
    return MetaTensor(values, affine=torch.diag(torch.tensor([2.0, 2, 2, 1])))


def locked(values):
    copied = values.copy()
    copied.setflags(write=False)
    return copied


def faked(values):
    with FakeTensorMode() as mode:
        return mode.from_tensor(torch.from_numpy(values))


TAKEN = {
    "requires_grad": lambda values: torch.from_numpy(values).requires_grad_(),
    "parameter": lambda values: torch.nn.Parameter(torch.from_numpy(values)),
    "conjugate": lambda values: (torch.from_numpy(values) + 0j).conj().real,
    "pending sign": lambda values: (-1j * torch.from_numpy(values)).conj().imag,
    "negative strides": lambda values: values[..., ::-1, ::-1].copy()[..., ::-1, ::-1],
    "read-only": locked,
    "big endian": lambda values: values.astype(">f4"),
    "Fortran order": np.asfortranarray,
    "long double": lambda values: values.astype(np.longdouble),
    "nothing masked": lambda values: np.ma.masked_array(values, mask=False),
    "expanded": lambda values: torch.from_numpy(values)[None].expand(1, *values.shape),
    "MetaTensor": meta_tensor,
}
WITH_GRADIENT = {"requires_grad", "parameter"}
REFUSED = {
    "sparse": (lambda values: torch.from_numpy(values).to_sparse(), r"layout sparse_coo: pass tensor\.to_dense"),
    "CSR": (lambda values: torch.from_numpy(values).to_sparse_csr(), r"layout sparse_csr: pass tensor\.to_dense"),
    "oneDNN": (lambda values: torch.from_numpy(values).to_mkldnn(), r"layout _mkldnn: pass tensor\.to_dense"),
    "nested": (lambda values: torch.nested.nested_tensor([torch.from_numpy(values)] * 2), "nested tensor, of several"),
    "meta": (lambda values: torch.from_numpy(values).to("meta"), "meta device, which has a shape and no values"),
    "fake": (faked, "cannot take FakeTensor"),
    "complex": (lambda values: torch.from_numpy(values) * 1j, "complex64 values: real numbers"),
    "conjugated": (lambda values: (torch.from_numpy(values) * 1j).conj(), "complex64 values: real numbers"),
    "quantised": (quantised, r"a quantised tensor: pass tensor\.dequantize"),
    "quantised to 32": (partial(quantised, kind=torch.qint32), r"a quantised tensor: pass tensor\.dequantize"),
    "bits": (lambda values: torch.from_numpy(values).byte().view(torch.bits8), "bits8 values: real numbers"),
    "objects": (lambda values: values.astype(object), "object values: real numbers"),
    "records": (lambda values: values.view([("a", "f4")]), "values: real numbers"),
    "dates": (lambda values: values.astype("i8").view("M8[s]"), r"datetime64\[s\] values: real numbers"),
    "masked": (lambda values: np.ma.masked_array(values, mask=values > 0.5), "masked values"),
    "no dimensions": (lambda values: np.array(0.5), r"has shape \(\)"),
    "tensor without dimensions": (lambda values: torch.tensor(0.5), r"has shape \(\)"),
    "a number": (lambda values: np.float32(0.5), "cannot take float32"),
    "empty": (lambda values: values[..., :0], "0"),
    "empty tensor": (lambda values: torch.from_numpy(values)[..., :0], "0"),
    "MetaTensor on meta": (lambda values: meta_tensor(values).to("meta"), "meta device"),
    "quantised MetaTensor": (lambda values: MetaTensor(quantised(values)), "a quantised tensor"),
}


@pytest.mark.parametrize(
    ("reader", "made"),
    [
        *product(["image"], TAKEN),
        *product(["volume"], sorted(TAKEN.keys() - WITH_GRADIENT)),
        # Of a MetaTensor the pixels have a size, and are resampled.
        *product(["slices"], sorted(TAKEN.keys() - WITH_GRADIENT - {"MetaTensor"})),
        *product(["slice"], sorted(TAKEN.keys() - WITH_GRADIENT - {"MetaTensor", "expanded"})),
    ],
)
def test_what_holds_the_same_numbers_is_the_same_image(reader, made):
    """Memory read in another order, sign or byte order."""
    assert torch.equal(READERS[reader](TAKEN[made]).detach(), READERS[reader](np.asarray))


@pytest.mark.parametrize("kind", sorted(WITH_GRADIENT))
def test_no_gradient_is_lost_in_silence(kind):
    """An image keeps its graph; a volume is an array on the way, so that what is made of it would have none."""
    assert READERS["image"](TAKEN[kind]).requires_grad
    for reader in ("volume", "slice", "slices"):
        with pytest.raises(InputContractError, match=r"requires a gradient, .*image\.detach\(\)"):
            READERS[reader](TAKEN[kind])


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize(("made", "said"), REFUSED.values(), ids=REFUSED)
def test_what_holds_no_real_numbers_is_refused(reader, made, said):
    """An error of torch or NumPy, or an image of what stands behind a mask."""
    with pytest.raises(InputContractError, match=said):
        reader(made)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float64])
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_floats_of_any_width_are_those_numbers(reader, kind):
    """NumPy has no bfloat16."""
    found = reader(lambda values: torch.from_numpy(values).to(kind))
    assert torch.equal(found, reader(lambda values: torch.from_numpy(values).to(kind).float().numpy()))


def test_unsigned_words_are_divided_by_their_maximum():
    """Torch counts with few operations on them."""
    words = (VALUES * 65535).astype(np.uint16)
    assert torch.equal(IMAGE(torch.from_numpy(words[..., 0])), IMAGE(words[..., 0]))
    assert np.array_equal(read_volume(torch.from_numpy(words)).values, words)


def test_a_matrix_may_be_of_any_real_numbers():
    """An affine in bfloat16, or with a gradient; one of complex numbers is named."""
    matrix = torch.diag(torch.tensor([2.0, 2, 2, 1]))
    for affine in (matrix.bfloat16(), matrix.clone().requires_grad_(), matrix.int()):
        made = meta_tensor(VALUES)
        made.meta["affine"] = affine
        assert np.array_equal(read_volume(made).affine, matrix.numpy())
    made.meta["affine"] = matrix * 1j
    with pytest.raises(InputContractError, match=r"the affine of MetaTensor .* complex64 values"):
        read_volume(made)


def test_values_beyond_float32_are_no_warning_of_numpy():
    """A warning that is an error in some programs, in place of the refusal."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputContractError, match="infinite"):
            IMAGE(np.full((40, 48), 1e300))
        assert np.isinf(read_volume(np.full((9, 9, 9), 1e300)).values).all()

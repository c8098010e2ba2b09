"""CT-FM's networks at full size give the authors' outputs."""

import pytest
import torch
from caid_files import filled, relative_error
from ctfm_files import ENCODER, SEGMENTER, reference, reference_input, shapes_of, whole
from safetensors.torch import save_file

import zoo

TOLERANCE = 1e-5
"""Relative. The same convolutions with sums in another order differ by some 1e-6; the wrong variants below by 0.3."""


@pytest.fixture(scope="module")
def files(scratch):
    """The three published files, safetensors with bare names."""
    paths = {kind: scratch / f"ctfm-{kind}.safetensors" for kind in ("encoder", "wholebody", "segresnet")}
    save_file(whole(), paths["encoder"])
    segmenter = whole("wholebody")
    save_file(segmenter, paths["wholebody"])
    # Equal names and shapes have equal values, which take seconds to make.
    alike = {name for name, shape in shapes_of("segresnet").items() if shape == shapes_of("wholebody").get(name)}
    other = filled({name: shape for name, shape in shapes_of("segresnet").items() if name not in alike})
    save_file(other | {name: segmenter[name] for name in alike}, paths["segresnet"])
    yield paths
    for path in paths.values():
        path.unlink()


@pytest.mark.slow
@torch.no_grad()
def test_features_are_the_authors(files):
    """Last map and its mean; a maximum, a ReLU before the mean or another order of the axes are far away."""
    encoder = zoo.load_model(ENCODER, checkpoint=files["encoder"], mmap=True)
    x, theirs = reference_input(), reference()
    level, seen = encoder.layers[3]["blocks"], []
    hook = level.register_forward_hook(lambda module, inputs, output: seen.append(output[:1, ::8].clone()))
    last, pooled = encoder.forward_features(x), encoder(x)
    hook.remove()
    assert relative_error(last, theirs["map"]) < TOLERANCE
    assert relative_error(pooled, theirs["pooled"]) < TOLERANCE
    assert relative_error(seen[0], theirs["level3"]) < TOLERANCE
    assert last.min() < 0
    turned = encoder(x.transpose(2, 3).contiguous())
    for wrong in (last.amax((2, 3, 4)), last.relu().mean((2, 3, 4)), turned, encoder(x.flip(2))):
        assert relative_error(wrong, theirs["pooled"]) > 0.1
    assert encoder.num_features == pooled.shape[1] == 512
    report = zoo.load_report(encoder)
    assert (len(report.loaded), report.adapted, report.fresh, report.dropped) == (161, {}, {}, {})


@pytest.mark.slow
@torch.no_grad()
def test_logits_are_the_authors(files):
    """Of 118 classes with four heads and of two with one, in eval mode one tensor at full size."""
    x, theirs = reference_input()[:1], reference()
    found = zoo.load_model(SEGMENTER, checkpoint=files["wholebody"], mmap=True)(x)
    assert found.shape == (1, 118, 32, 48, 64)
    assert relative_error(found[..., ::8, ::8, ::8], theirs["logits118"]) < TOLERANCE
    two = zoo.load_model(SEGMENTER, checkpoint=files["segresnet"], mmap=True)
    assert relative_error(two(x)[..., ::8, ::8, ::8], theirs["logits2"]) < TOLERANCE

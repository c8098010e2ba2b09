"""The published Swin transformers at full size: the authors' arrays, by the Swin UNETR and by its encoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from caid_files import PARITY, behind, filled, relative_error
from monai_ssl_files import SWIN, filled_form, swin_keys
from parity.fill import image

import zoo
from zoo.checkpoint import fingerprint
from zoo.checkpoint.skeleton import without_values
from zoo.entries.monai_ssl.segmenters import swin_unetr
from zoo.manifest import records
from zoo.networks.swin import patch_merging

ENCODER = "monai-ssl-swinvit"
TOLERANCE = 1e-5
"""Relative. Sums in another order differ by some 2e-6 after eight blocks and the decoder; the other merging by 0.2, and
every wrong way to pool by more than 0.02."""
FORMS = {
    "dae": lambda state: {"model": state, "epoch": 1, "optimizer": {"param_groups": []}},
    "dae_drive": lambda state: {"model": behind("module.", state)},
    "ct5050": lambda state: {"state_dict": behind("module.", state)},
}
"""Published files -> what they hold around the names."""
OUT = ("out.conv.conv.weight", "out.conv.conv.bias")


@pytest.fixture(scope="module", params=FORMS)
def published(request, scratch):
    """A published file at full size, its name, and what the authors' code makes of it."""
    form = request.param
    path = scratch / f"{form}.pt"
    torch.save(FORMS[form](filled_form(form)), path)
    with np.load(PARITY / f"swin_{form}_0.npz") as stored:
        arrays = dict(stored)
    yield form, path, arrays
    path.unlink()


def reference_input():
    """The volumes that the arrays were computed from, `(2, 1, 64, 32, 96)` in [0, 1]."""
    return torch.from_numpy(np.clip(0.5 + 0.25 * image("x", (2, 1, 64, 32, 96), 0), 0, 1).astype(np.float32))


@pytest.mark.slow
@torch.no_grad()
def test_the_swin_unetr_computes_what_the_authors_network_does(published):
    """Every stage, the decoder, the logits; with all eight slices it is the network of MONAI 1.6.1, and not theirs.

    Catches the merging of today's MONAI under the old weights, a wrong or forgotten first layer, `fc1` and `fc2` left
    out, a decoder that is not in its place. The first volume alone, whatever lay beside it in the authors' batch.
    """
    form, path, arrays = published
    x, unet = reference_input()[:1], swin_keys("unet")
    model = zoo.load_model(SWIN, checkpoint=path, mmap=True)
    assert zoo.load_report(model).options == {"merging": "duplicated"}
    assert zoo.load_report(model).fresh.keys() == (unet.keys() if form == "ct5050" else set(OUT))
    missing = unet if form == "ct5050" else {name: unet[name] for name in OUT}  # the last convolution alone
    model.load_state_dict(model.state_dict() | filled(missing))
    seen = {}
    for i, part in enumerate((model.encoder3, model.encoder4, model.decoder5, model.encoder10), start=1):
        part.register_forward_pre_hook(lambda module, inputs, i=i: seen.update({i: inputs[-1]}))
    model.decoder1.register_forward_hook(lambda module, inputs, output: seen.update(decoder=output))
    logits = model(x)
    assert relative_error(seen[4], arrays["map"][:1]) < TOLERANCE
    for i, step in ((1, 2), (2, 2), (3, 1)):
        if f"stage{i}" in arrays:
            assert relative_error(seen[i][:, ::4, ::step, ::step, ::step], arrays[f"stage{i}"]) < TOLERANCE
    assert relative_error(logits[..., ::8, ::8, ::8], arrays["logits"]) < TOLERANCE
    if form == "dae":
        assert relative_error(seen["decoder"][:, ::2, ::8, ::8, ::8], arrays["decoder"]) < TOLERANCE
        with without_values():
            other = swin_unetr(merging="complete").eval()
        other.load_state_dict(model.state_dict(), strict=True, assign=True)
        found = other.swinViT(x)[4]
        assert relative_error(found, arrays["map_complete"][:1]) < TOLERANCE
        assert relative_error(found, arrays["map"][:1]) > 0.1


@pytest.mark.slow
@torch.no_grad()
def test_the_encoder_computes_what_the_authors_network_does(published):
    """The last map and its mean over space, of both published files and of the paper's network; those are on record.

    All eight slices, the largest value or the first cell in place of the mean, and the map before its norm do not pass.
    The second volume alone, whatever lay beside it in the authors' batch.
    """
    form, path, arrays = published
    x, (map_, pooled) = reference_input()[1:], (arrays[name][1:] for name in ("map", "pooled"))
    fingerprints = {record.tag: record.fingerprint[ENCODER] for record in records(ENCODER)}
    name = f"{ENCODER}.{form}" if form in fingerprints else ENCODER
    model = zoo.load_model(name, checkpoint=path, mmap=True)
    report = zoo.load_report(model)
    assert (report.options, report.fresh) == ({"merging": "duplicated"}, {})
    if form in fingerprints:
        assert len(report.loaded) == 126
        assert fingerprint(model.state_dict()) == fingerprints[form]
    seen = {}
    model.layers4[0].register_forward_hook(lambda module, inputs, output: seen.update(raw=output))
    features = model(x)
    assert features.shape == (1, model.num_features) == (1, 768)
    assert relative_error(features, pooled) < TOLERANCE
    found = model.normalised(seen["raw"])
    assert relative_error(found, map_) < TOLERANCE
    for wrong in (found.amax((2, 3, 4)), found[..., 0, 0, 0], seen["raw"].mean((2, 3, 4))):
        assert relative_error(wrong, pooled) > 0.02
    if form == "ct5050":
        for place in ("layers1", "layers2", "layers3", "layers4"):
            getattr(model, place)[0].downsample.offsets = patch_merging("complete").keywords["offsets"]
        other = model.forward_features(x).mean((2, 3, 4))
        assert relative_error(other, arrays["pooled_complete"][1:]) < TOLERANCE
        assert relative_error(other, pooled) > 0.1

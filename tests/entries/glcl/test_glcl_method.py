"""GLCL's losses: the authors' numbers, a plain loop over the terms, its gradient, and the two pre-training methods."""

from __future__ import annotations

import json
import math
from pathlib import Path

import gloo
import pytest
import torch
from parity import fill as parity
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.entries.glcl.method import GlobalContrastiveLoss, GlobalMethod, LocalContrastiveLoss, LocalMethod
from zoo.entries.glcl.model import GLCLDecoder, GLCLEncoder
from zoo.entries.glcl.regions import NEGATIVES, PLACES, starts
from zoo.errors import InputContractError, OptionError
from zoo.training.distributed import rank

CASES = json.loads((Path(parity.__file__).parent / "losses.json").read_text())
CORNERS = [row + column for row in "024" for column in "024"]
COMPARED = {9: CORNERS, 13: [*CORNERS, "11", "13", "31", "33"]}


def randn(*shape, seed=0):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- the authors' numbers


@pytest.mark.parametrize("name", CASES["glcl_global"])
@pytest.mark.parametrize("upstream", [False, True])
def test_the_global_loss_equals_the_authors(name, upstream):
    """With four parts and full blocks their literals are the rule; float32 against float32, 1e-6."""
    case = CASES["glcl_global"][name]
    variant = {1: "D-", 2: "D"}[case["exp_no"]]
    z = torch.from_numpy(parity.image(case["z_name"], (case["n"], 128)))
    loss = GlobalContrastiveLoss(variant, case["n_parts"], case["temperature"], upstream)
    assert loss(z).item() == pytest.approx(case["loss_on_z"], rel=1e-6)


@pytest.mark.parametrize("name", CASES["glcl_local"])
@pytest.mark.parametrize("upstream", [False, True])
def test_the_local_loss_equals_the_authors(name, upstream):
    """Their maps are channels last; of 48 rows their "D" reads 24, as ours does if told to. 2e-6: float32 sums."""
    case = CASES["glcl_local"][name]
    variant, size = "RD"[case["exp_no"]], {0: 1, 1: 3}[case["local_reg_size"]]
    features = torch.from_numpy(parity.image(case["name"], case["feature_shape_nhwc"])).permute(0, 3, 1, 2)
    features = features if upstream or variant == "R" else features[:24]
    loss = LocalContrastiveLoss(variant, size, case["regions"], case["temperature"], upstream=upstream)
    assert loss(features).item() == pytest.approx(case["loss"], rel=2e-6)


# --- the global loss against its definition


def term(similarity, anchor, positive, negatives):
    """One term, from similarities over the temperature."""
    return torch.logsumexp(torch.stack([similarity(anchor, c) for c in (positive, *negatives)]), 0) - similarity(
        anchor, positive
    )


def cosine(vectors, temperature):
    unit = vectors / vectors.norm(dim=-1, keepdim=True)
    return lambda a, b: (unit[a] * unit[b]).sum() / temperature


def plain_global(z, variant, parts, temperature=0.1):
    """The published sums in the precision of `z`, one term after the other, from what each row of a batch is."""
    n, similarity = len(z), cosine(z, temperature)
    if variant == "R":
        others = {a: [c for c in range(n) if c // 2 != a // 2] for a in range(n)}
        return sum(term(similarity, a, a ^ 1, others[a]) for a in range(n)) / n
    others = {a: [c for c in range(n) if c % parts != a % parts] for a in range(n)}
    if variant == "D-":
        b = n // 3
        triples = [(p, b + p, 2 * b + p) for p in range(b)]
        return sum(term(similarity, a, c, others[a]) for kin in triples for a in kin for c in kin if a != c) / n
    total, blocks = 0.0, n // (4 * parts)
    for block in range(blocks):
        for part in range(parts):
            here, following = 4 * parts * block + part, 4 * parts * ((block + 1) % blocks) + part
            first, second = (here, here + parts), (here + 2 * parts, here + 3 * parts)
            third = (following, following + parts)
            for own, other in ((first, second), (second, third)):
                pairs = [own, (own[0], other[0]), other, (own[1], other[1])]
                total = total + sum(term(similarity, a, c, others[a]) for x, y in pairs for a, c in ((x, y), (y, x)))
    return total / n


def plain_global_upstream(z, variant, parts, size, temperature=0.1):
    """The authors' literals, for numbers of parts and rows they were not meant for."""
    similarity, total = cosine(z, temperature), 0.0
    if variant == "D-":
        for p in range(size):
            negatives = sorted(set(range(3 * size)) - set(range(p % parts, 3 * size, 4)))
            kin = (p, size + p, 2 * size + p)
            total = total + sum(term(similarity, a, c, negatives) for a in kin for c in kin if a != c)
        return total / (3 * size)
    count = {3: 4 * size + 5, 4: 4 * size, 6: 5 * size + 4}[parts]
    factor = {3: 5, 4: 4 if size == 12 else 40, 6: 2}[parts]
    for p in (p for p in range(count) if p % (2 * parts) < parts):
        negatives = sorted(set(range(count)) - {(p + k * parts) % count for k in range(factor * parts)})
        kin = [(p + k * parts) % count for k in range(4)]
        for x, y in ((0, 1), (0, 2), (2, 3), (1, 3)):
            total = total + term(similarity, kin[x], kin[y], negatives) + term(similarity, kin[y], kin[x], negatives)
    return total / (4 * size)


def check_value_and_gradient(loss, plain, x):
    """Ours in float32 against the plain loop in float64: 1e-5, and 1e-5 of the largest slope."""
    single, double = x.clone().requires_grad_(True), x.double().requires_grad_(True)
    ours, theirs = loss(single), plain(double)
    assert (ours.dtype, ours.shape) == (torch.float32, ())
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    ours.backward()
    theirs.backward()
    assert double.grad.abs().max() > 1e-4
    torch.testing.assert_close(single.grad.double(), double.grad, rtol=1e-4, atol=1e-5 * double.grad.abs().max().item())


@pytest.mark.parametrize(
    ("variant", "parts", "count"),
    [
        ("R", 4, 4),
        ("R", 4, 10),
        ("D-", 4, 12),
        ("D-", 4, 36),
        ("D-", 2, 18),
        ("D-", 3, 27),
        ("D-", 5, 15),
        ("D", 4, 16),
        ("D", 4, 32),
        ("D", 4, 48),
        ("D", 3, 36),
        ("D", 2, 24),
        ("D", 5, 20),
    ],
)
def test_the_global_loss_equals_its_definition(variant, parts, count):
    """Any number of parts and blocks, one block included."""
    loss = GlobalContrastiveLoss(variant, parts)
    check_value_and_gradient(loss, lambda z: plain_global(z, variant, parts), randn(count, 7, seed=count))
    warmer = GlobalContrastiveLoss(variant, parts, temperature=0.7)
    z = randn(count, 5, seed=1)
    assert warmer(z).item() == pytest.approx(plain_global(z.double(), variant, parts, 0.7).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("variant", "parts", "size", "rows"),
    [
        ("D-", 3, 5, 15),
        ("D-", 6, 6, 18),
        ("D-", 4, 10, 30),
        ("D", 3, 4, 24),
        ("D", 3, 10, 54),
        ("D", 4, 6, 24),
        ("D", 4, 10, 40),
        ("D", 6, 10, 54),
        ("D", 6, 5, 29),
    ],
)
def test_upstream_equals_the_authors_literals(variant, parts, size, rows):
    """Their sums, wrong partners and all; rows that they do not read have no gradient."""
    loss = GlobalContrastiveLoss(variant, parts, upstream=True)
    z = randn(rows, 6, seed=rows)
    check_value_and_gradient(loss, lambda z: plain_global_upstream(z, variant, parts, size), z)


def test_upstream_is_the_rule_for_four_parts_alone():
    """The same for full blocks of four; elsewhere the literals let slices of the anchor's own part in as negatives."""
    for variant, count in (("D-", 24), ("D", 48)):
        z = randn(count, 8)
        ours, theirs = (GlobalContrastiveLoss(variant, upstream=upstream)(z).item() for upstream in (False, True))
        assert ours == theirs
    z = randn(18, 8)
    ours, theirs = (GlobalContrastiveLoss("D-", 3, upstream=upstream)(z).item() for upstream in (False, True))
    assert abs(ours - theirs) > 0.1


def test_published_scales():
    """Where nothing is told apart a term is log(1 + negatives): times 1, 2 and 4, locally 1 and V / 2."""
    for variant, count, scale, negatives in (("R", 20, 1, 18), ("D-", 36, 2, 27), ("D", 48, 4, 36)):
        value = GlobalContrastiveLoss(variant)(torch.ones(count, 8)).item()
        assert value == pytest.approx(scale * math.log(1 + negatives), rel=1e-6)
    for variant, count, scale in (("R", 20, 1), ("D", 24, 1.5), ("D", 32, 2)):
        value = LocalContrastiveLoss(variant, n_negatives=4)(torch.ones(count, 2, 12, 12)).item()
        assert value == pytest.approx(scale * math.log(9), rel=1e-6)


# --- the local loss against its definition


@pytest.mark.parametrize(
    ("side", "size", "expected"),
    [
        (12, 3, [0, 2, 4, 6, 8]),
        (24, 3, [0, 5, 10, 15, 20]),
        (48, 3, [0, 11, 22, 33, 44]),
        (96, 3, [0, 23, 46, 69, 92]),
        (192, 3, [0, 47, 94, 141, 188]),
        (48, 1, [0, 11, 23, 35, 47]),
        (10, 3, [0, 1, 3, 4, 6]),
        (20, 3, [0, 4, 8, 12, 16]),
        (40, 3, [0, 9, 18, 27, 36]),
        (8, 3, [0, 1, 2, 3, 4]),
        (5, 1, [0, 1, 2, 3, 4]),
    ],
)
def test_where_regions_begin(side, size, expected):
    """Sides of the maps of 192 and 160 pixels, as domain_specific_cl has them, and the smallest."""
    assert starts(side, size) == expected


@pytest.mark.parametrize("key", NEGATIVES)
def test_tables_of_negatives(key):
    """Five different places for each region, never its own; only 13 of 3 x 3 have some that are not compared."""
    lines = [line.split() for line in NEGATIVES[key]]
    assert [len(line) for line in lines] == [5] * key[1]
    assert all(len(set(line)) == 5 for line in lines)
    assert list(PLACES[: key[1]]) == COMPARED[key[1]]
    assert not any(own in line for own, line in zip(COMPARED[key[1]], lines, strict=True))
    beyond = {code for line in lines for code in line} - set(COMPARED[key[1]])
    assert beyond == ({"12", "21", "23", "32"} if key == (3, 13) else set())


def plain_local(features, variant, size, regions, negatives=5, parts=4, temperature=0.1, project=None):
    """The published sums in the precision of `features`, cut region by region and added term by term."""
    count, _, height, width = features.shape
    edge = 4 if size == 3 else 1

    def region(image, code):
        row, column = (int((side - edge) * int(k) / 4) for side, k in zip((height, width), code, strict=True))
        vector = features[image, :, row : row + size, column : column + size].permute(1, 2, 0).flatten()
        vector = vector if project is None else project(vector)
        return vector / vector.norm()

    def both(first, second):
        total = 0.0
        for code, line in zip(COMPARED[regions], NEGATIVES[size, regions], strict=True):
            anchor = region(first, code)
            others = [region(image, other) for image in (first, second) for other in line.split()[:negatives]]
            logits = torch.stack([anchor @ other for other in (region(second, code), *others)]) / temperature
            total = total + torch.logsumexp(logits, 0) - logits[0]
        return total

    if variant == "R":
        pairs = [(a, a ^ 1) for a in range(count)]
    else:
        half = count // 2
        pairs = [(p, half + p) for p in range(half)]
        pairs += [(p, q) for p in range(half) for q in range(half) if p != q and p % parts == q % parts]
    return sum(both(*pair) for pair in pairs) / regions / count


@pytest.mark.parametrize(
    ("variant", "size", "regions", "negatives", "parts", "shape"),
    [
        ("R", 3, 13, 5, 4, (2, 3, 12, 12)),
        ("R", 3, 9, 5, 4, (4, 2, 10, 10)),
        ("R", 1, 13, 5, 4, (4, 5, 20, 20)),
        ("R", 1, 9, 3, 4, (6, 4, 9, 13)),
        ("R", 3, 13, 5, 4, (2, 2, 11, 17)),
        ("D", 3, 13, 4, 4, (24, 2, 10, 10)),
        ("D", 1, 9, 5, 3, (12, 4, 7, 7)),
        ("D", 3, 9, 3, 2, (12, 2, 8, 9)),
        ("D", 1, 13, 1, 1, (6, 4, 5, 6)),
    ],
)
def test_the_local_loss_equals_its_definition(variant, size, regions, negatives, parts, shape):
    """Maps of 192 and 160 pixel slices, odd and oblong ones; any number of parts, volumes and negatives."""
    loss = LocalContrastiveLoss(variant, size, regions, n_negatives=negatives, n_parts=parts)
    settings = {"negatives": negatives, "parts": parts}
    check_value_and_gradient(
        loss, lambda x: plain_local(x, variant, size, regions, **settings), randn(*shape, seed=shape[2])
    )


def test_regions_are_projected():
    """By a layer on (row, column, channel) of 3 x 3 pixels; the layer learns too."""
    torch.manual_seed(0)
    layer, features = nn.Linear(27, 6, bias=False), randn(4, 3, 12, 12)
    loss = LocalContrastiveLoss("R")(features, layer)
    weight = layer.weight.detach().double().requires_grad_(True)
    expected = plain_local(features.double(), "R", 3, 13, project=lambda vector: weight @ vector)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(layer.weight.grad.double(), weight.grad, rtol=1e-4, atol=1e-5)


def test_upstream_local_d_reads_three_volumes_of_four_parts():
    """Of 30 rows the first 24; the others have no gradient."""
    features = randn(30, 2, 12, 12).requires_grad_(True)
    LocalContrastiveLoss("D", upstream=True)(features).backward()
    assert features.grad[24:].abs().max() == 0
    ours, theirs = (LocalContrastiveLoss("D", upstream=u)(features[:24]) for u in (False, True))
    assert torch.equal(ours, theirs)


# --- both losses


class Counted(TorchDispatchMode):
    """Counts the operations that are run."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += 1
        return operation(*args, **(kwargs or {}))


BOTH = [
    (GlobalContrastiveLoss("R"), (8, 16), (40, 16)),
    (GlobalContrastiveLoss("D-"), (12, 16), (96, 16)),
    (GlobalContrastiveLoss("D"), (16, 16), (96, 16)),
    (LocalContrastiveLoss("R"), (2, 4, 12, 12), (20, 4, 24, 24)),
    (LocalContrastiveLoss("D"), (16, 4, 12, 12), (32, 4, 24, 24)),
]
IDS = ["global R", "global D-", "global D", "local R", "local D"]


@pytest.mark.parametrize(("loss", "small", "large"), BOTH, ids=IDS)
def test_operations_do_not_grow_with_the_batch(loss, small, large):
    """Nothing is done term by term: the number of operations of a step is one for all sizes, and below 100."""
    counts = []
    for shape in (small, large):
        x = randn(*shape).requires_grad_(True)
        loss(x)
        with Counted() as counted:
            loss(x).backward()
        counts.append(counted.count)
    assert counts[0] == counts[1] < 100


@pytest.mark.parametrize(("loss", "small", "large"), BOTH, ids=IDS)
def test_half_precision_inputs_are_computed_in_float32(loss, small, large):
    """The same as with the rounded inputs in float32, inside autocast too; bit for bit."""
    rounded = randn(*small).bfloat16()
    expected = loss(rounded.float())
    assert torch.equal(loss(rounded), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(rounded), expected)


@pytest.mark.parametrize(("loss", "small", "large"), BOTH, ids=IDS)
def test_tables_made_in_inference_serve_training(loss, small, large):
    """And for batches of several sizes in turn; none of it is in the checkpoint."""
    fresh = type(loss)(loss.variant)
    with torch.inference_mode():
        values = [fresh(randn(*shape)).item() for shape in (small, large)]
    for shape, value in zip((small, large), values, strict=True):
        x = randn(*shape).requires_grad_(True)
        again = fresh(x)
        again.backward()
        assert again.item() == value
        assert x.grad.abs().max() > 0
    assert not fresh.state_dict()


@pytest.mark.parametrize(("loss", "small", "large"), BOTH, ids=IDS)
def test_extreme_similarities_stay_finite(loss, small, large):
    """Identical rows, rows of zeros (as blank slices may have), and both at temperature 0.001, loss and gradient."""
    cold = type(loss)(loss.variant, temperature=0.001)
    for first in (torch.ones(small), torch.zeros(small), randn(*small)):
        x = first.clone()
        x[::2] = 0
        x.requires_grad_(True)
        value = cold(x)
        value.backward()
        assert value.isfinite()
        assert x.grad.isfinite().all()


def test_accuracy_is_the_share_of_positives_that_outweigh_all_negatives():
    """By hand: slice 0's views agree with each other alone, slice 1's with slice 0's as well."""
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    accuracy = GlobalContrastiveLoss("R").measure(z)[1]
    assert accuracy.item() == pytest.approx(2 / 6)


@pytest.mark.parametrize(
    ("loss", "shape", "message"),
    [
        (GlobalContrastiveLoss("R"), (7, 4), r"7 rows for variant 'R': a multiple of 2, at least 4, is expected"),
        (GlobalContrastiveLoss("R"), (2, 4), "2 rows"),
        (GlobalContrastiveLoss("D-"), (16, 4), r"16 rows for variant 'D-': a multiple of 12"),
        (GlobalContrastiveLoss("D-", 3), (12, 4), r"a multiple of 9.*multiple of n_parts=3"),
        (GlobalContrastiveLoss("D-", upstream=True), (13, 4), "13 rows for variant 'D-': a multiple of 3"),
        (GlobalContrastiveLoss("D"), (40, 4), r"40 rows for variant 'D': a multiple of 16.*blocks of 4 x n_parts=4"),
        (GlobalContrastiveLoss("D"), (0, 4), "0 rows"),
        (
            GlobalContrastiveLoss("D", 3, upstream=True),
            (48, 4),
            r"upstream=True and n_parts=3, 5 x b \+ 4 are expected",
        ),
        (GlobalContrastiveLoss("D", upstream=True), (42, 4), r"42 rows .* 4 x b \+ 0 are expected"),
        (GlobalContrastiveLoss("D"), (48, 4, 1), r"projections \(M, D\) are expected, not \(48, 4, 1\)"),
        (LocalContrastiveLoss("R"), (5, 2, 12, 12), "5 rows for variant 'R': a multiple of 2"),
        (LocalContrastiveLoss("D"), (20, 2, 12, 12), r"20 rows for variant 'D': a multiple of 8, at least 16"),
        (LocalContrastiveLoss("D"), (8, 2, 12, 12), "8 rows"),
        (LocalContrastiveLoss("D", upstream=True), (16, 2, 12, 12), "16 rows: upstream=True reads the first 24"),
        (LocalContrastiveLoss("R"), (4, 12), r"feature maps \(M, C, H, W\) are expected, not \(4, 12\)"),
    ],
)
def test_wrong_numbers_of_rows_are_refused(loss, shape, message):
    """With the number that is due and what the rows should be."""
    with pytest.raises(OptionError, match=message):
        loss(torch.ones(shape))


def test_small_maps_are_refused():
    """Five different places must lie in a row; and what is to be done."""
    for size, side, least in ((3, 7, 8), (1, 4, 5), (3, 2, 8)):
        loss = LocalContrastiveLoss("R", size)
        with pytest.raises(
            InputContractError, match=f"map of {side} pixels .* {size} x {size}: at least {least} pixels"
        ):
            loss(torch.ones(2, 2, 24, side))
        loss(torch.ones(2, 2, least, least))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GlobalContrastiveLoss("D+"), r"variant='D\+': expected one of R, D-, D"),
        (lambda: LocalContrastiveLoss("D-"), "variant='D-': expected one of R, D"),
        (lambda: GlobalContrastiveLoss(temperature=0), "temperature=0"),
        (lambda: LocalContrastiveLoss(temperature=math.nan), "temperature=nan"),
        (lambda: GlobalContrastiveLoss("D", 1), "n_parts=1: 2 or more"),
        (lambda: GlobalContrastiveLoss("D", 5, upstream=True), "n_parts=5: the authors' code has 3, 4 and 6"),
        (lambda: LocalContrastiveLoss("D", n_parts=3, upstream=True), "n_parts=3"),
        (lambda: LocalContrastiveLoss(region_size=2), "region_size=2, n_regions=13: regions of 1 or 3"),
        (lambda: LocalContrastiveLoss(n_regions=12), "n_regions=12"),
        (lambda: LocalContrastiveLoss(n_negatives=6), "n_negatives=6: 1 to 5"),
        (lambda: LocalContrastiveLoss(region_size=1)(torch.ones(2, 2, 12, 12), nn.Identity()), "project is for"),
        (lambda: GlobalMethod(GLCLEncoder(size=32), GlobalContrastiveLoss()), "projection=True is expected"),
        (lambda: LocalMethod(GLCLDecoder(1), LocalContrastiveLoss(region_size=1)), "project=False"),
        (lambda: LocalMethod(GLCLDecoder(1), LocalContrastiveLoss(), encoder_statistics="x"), "encoder_statistics='x'"),
        (lambda: local_method()({"image": torch.ones(1, 128, 128)}), r"image of shape \(\[K,\] M, 1, S, S\)"),
    ],
)
def test_settings_that_have_no_meaning_are_refused(make, message):
    """Each by its name and value."""
    with pytest.raises(OptionError, match=message):
        make()


# --- the methods


def global_method():
    torch.manual_seed(0)
    return GlobalMethod(GLCLEncoder(size=32, projection=True), GlobalContrastiveLoss("D-", 2))


def local_method(**settings):
    torch.manual_seed(0)
    return LocalMethod(GLCLDecoder(2), LocalContrastiveLoss("R"), **settings)


def slices(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_stage_one_is_the_loss_of_the_projections():
    """One batch, or several in a call: each has its own loss, and batch statistics are those of all."""
    method = global_method()
    image = slices(12, 1, 32, 32)
    losses = method({"image": image})
    assert set(losses) == {"loss", "accuracy"}
    assert losses["loss"].item() == pytest.approx(method.loss(method.network(image)).item(), rel=1e-5)
    losses["loss"].backward()
    assert all(
        p.grad is not None and p.grad.abs().max() > 0 for n, p in method.network.named_parameters() if "reg" in n
    )
    assert method.network.enc_c1_a.weight.grad.abs().max() > 0
    together = method({"image": image.view(2, 6, 1, 32, 32)})["loss"].item()
    apart = [method.loss(z).item() for z in method.network(image).chunk(2)]
    assert together == pytest.approx(sum(apart) / 2, rel=1e-5)
    assert abs(together - losses["loss"].item()) > 1e-3


@pytest.mark.slow
def test_stage_two_trains_the_decoder_alone():
    """Blocks, head and the regions' layer; of the encoder no parameter."""
    method, image = local_method(), slices(4, 1, 128, 128)
    losses = method({"image": image})
    maps = method.network(image)
    assert losses["loss"].item() == pytest.approx(method.loss(maps, method.network.seg_pred).item(), rel=1e-5)
    assert abs(losses["loss"].item() - method.loss(maps).item()) > 1e-3
    losses["loss"].backward()
    for name, parameter in method.network.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None) == (not name.startswith("enc_")), name
    assert method.network.seg_pred.weight.grad.abs().max() > 0
    assert method.network.dec_dc6.weight.grad.abs().max() > 0
    both = local_method(freeze_encoder=False)
    both({"image": image})["loss"].backward()
    assert both.network.enc_c1_a.weight.grad.abs().max() > 0


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_what_the_norms_of_the_frozen_encoder_do(statistics):
    """By the batch as published, averages moving; or by the averages of stage 1, which stay. The decoder's move."""
    method = local_method(encoder_statistics=statistics).train()
    before = {name: value.clone() for name, value in method.network.named_buffers() if "running" in name}
    image = slices(4, 1, 128, 128)
    losses = method({"image": image})
    for name, value in method.network.named_buffers():
        if "running" in name:
            stays = statistics == "running" and name.startswith("enc_")
            assert torch.equal(value, before[name]) == stays, name
    assert method.network.training
    assert method.network.enc_c1_a_bn.training == (statistics == "batch")
    alone = method({"image": image[:2]})["loss"].item()
    assert abs(alone - losses["loss"].item()) > 1e-6
    method.eval()
    assert not any(module.training for module in method.modules())


@pytest.mark.slow
def test_two_processes_have_batches_of_their_own(tmp_path):
    """DDP's gradient is the mean of what each batch has alone: none is compared with another process's."""
    views = [slices(6, 1, 32, 32, seed=seed) for seed in range(2)]

    def gradient(method, wrapped, image):
        method.zero_grad()
        loss = wrapped({"image": image})["loss"]
        loss.backward()
        return [loss.detach(), method.network.reg_pred.weight.grad.clone()]

    def work():
        method = global_method()
        return gradient(method, DistributedDataParallel(method, broadcast_buffers=False), views[rank()])

    method = global_method()
    alone = [gradient(method, method, image) for image in views]
    together = gloo.run(work, 2, tmp_path)
    expected = (alone[0][1] + alone[1][1]) / 2
    for own, both in zip(alone, together, strict=True):
        assert both[0].item() == pytest.approx(own[0].item(), rel=1e-5)
        torch.testing.assert_close(both[1], expected, rtol=1e-4, atol=1e-6)

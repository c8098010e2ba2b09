"""GLCL's batches: which slices, in which order of rows, and that the losses compare what these rows are."""

from __future__ import annotations

import numpy as np
import pytest

from zoo.entries.glcl.batches import BLANK, global_rows, local_rows
from zoo.entries.glcl.terms import global_terms, local_pairs
from zoo.errors import InputContractError, OptionError

DEPTHS = {f"patient{i:03d}": depth for i, depth in enumerate((10, 8, 4, 17, 9, 6, 11, 30, 5, 12))}
"""Ten volumes of different depth; 4 and 5 slices leave no choice for 4 parts."""


def rng(seed=0):
    return np.random.default_rng(seed)


def parts(rows, n_parts=4):
    """The part that each row's slice is of; -1 beyond the last one."""
    depths = np.array(list(DEPTHS.values()))[rows[:, 0]]
    part = rows[:, 1] // (depths // n_parts)
    return np.where(part < n_parts, part, -1)


def test_d_minus_has_slices_then_two_views():
    """Three volumes of four parts: 12 slices, views 1, views 2; row mod P is the part."""
    rows = global_rows("D-", DEPTHS, 12, rng())
    assert rows.shape == (36, 3)
    assert rows[:, 2].tolist() == [0] * 12 + [1] * 12 + [2] * 12
    slices = rows[:12, :2]
    assert all(np.array_equal(slices, rows[start : start + 12, :2]) for start in (12, 24))
    assert parts(rows).tolist() == [0, 1, 2, 3] * 9
    volumes = slices[:, 0].reshape(3, 4)
    assert (volumes == volumes[:, :1]).all()
    assert len(set(volumes[:, 0].tolist())) == 3


@pytest.mark.parametrize(("batch_size", "n_parts"), [(12, 4), (4, 4), (20, 4), (9, 3), (4, 2)])
def test_d_has_full_blocks_of_different_volumes(batch_size, n_parts):
    """Slices, their views, slices of another volume, their views; no volume twice, no row blank."""
    rows = global_rows("D", DEPTHS, batch_size, rng(), n_parts=n_parts)
    blocks = rows.reshape(-1, 4, n_parts, 3)
    assert len(blocks) == batch_size // n_parts
    assert (blocks[:, [0, 2], :, 2] == 0).all()
    assert (blocks[:, [1, 3], :, 2] == 1).all()
    assert np.array_equal(blocks[:, [0, 2], :, :2], blocks[:, [1, 3], :, :2])
    volumes = blocks[:, [0, 2], :, 0]
    assert (volumes == volumes[..., :1]).all()
    assert len(np.unique(volumes)) == 2 * len(blocks)
    assert (parts(rows, n_parts) == np.arange(len(rows)) % n_parts).all()


@pytest.mark.parametrize("n_parts", [2, 3, 4])
def test_the_losses_compare_what_the_rows_are(n_parts):
    """Positives are of the anchor's part, negatives are all rows of other parts, and D meets another volume."""
    for variant in ("D-", "D"):
        rows = global_rows(variant, DEPTHS, 3 * n_parts, rng(1), n_parts=n_parts)
        part, terms = parts(rows, n_parts), global_terms(variant, len(rows), n_parts, upstream=False)
        anchor, positive = terms.rows[terms.query].numpy(), terms.positive.numpy()
        assert (part[anchor] == part[positive]).all()
        assert (anchor != positive).all()
        assert np.array_equal(terms.is_left_out.numpy(), part[terms.rows.numpy()][:, None] == part)
        is_other = rows[anchor, 0] != rows[positive, 0]
        assert is_other.mean() == (0 if variant == "D-" else 0.5)
        assert (rows[anchor, 2] != rows[positive, 2])[~is_other].all(), "a slice is compared with another copy"
        assert (rows[anchor, 2] == rows[positive, 2])[is_other].all(), "a copy with the same one of another volume"
    rows = local_rows("D", DEPTHS, 3 * n_parts, rng(1), n_parts=n_parts)
    part, (anchor, other) = parts(rows, n_parts), local_pairs("D", len(rows), n_parts)
    assert (part[anchor] == part[other]).all()
    met = [sorted(rows[other[anchor == i], 0].tolist()) for i in range(3 * n_parts)]
    assert met == [sorted(set(rows[:, 0].tolist()))] * 3 * n_parts, "each anchor meets all volumes, its own by a view"
    for batch in (global_rows("R", DEPTHS, 6, rng(1)), local_rows("R", DEPTHS, 6, rng(1))):
        anchor, other = local_pairs("R", len(batch), 1)
        assert np.array_equal(batch[anchor, :2], batch[other, :2])
        assert (batch[anchor, 2] + batch[other, 2] == 3).all()


def test_slices_are_drawn_evenly_within_parts():
    """Of 17 slices in four parts each of the first 16 is drawn as often, the last never.

    2000 draws of one in four: 500 expected, standard deviation 19.
    """
    depths, source = {"a": 17, "b": 17}, rng()
    drawn = [global_rows("D", depths, 4, source)[[0, 1, 2, 3], 1] for _ in range(2000)]
    counts = np.bincount(np.concatenate(drawn), minlength=17)
    assert counts[16] == 0
    assert abs(counts[:16] - 500).max() < 100


def test_volumes_are_drawn_evenly():
    """1000 draws of 3 of 10 volumes: 300 expected for each, standard deviation 14."""
    source = rng()
    drawn = np.concatenate([local_rows("D", DEPTHS, 12, source)[:12:4, 0] for _ in range(1000)])
    assert abs(np.bincount(drawn, minlength=10) - 300).max() < 75


def test_local_d_has_two_views_of_the_same_slices():
    """Views 1 of three volumes, then views 2; nothing unchanged."""
    rows = local_rows("D", DEPTHS, 12, rng())
    assert rows[:, 2].tolist() == [1] * 12 + [2] * 12
    assert np.array_equal(rows[:12, :2], rows[12:, :2])
    assert parts(rows).tolist() == [0, 1, 2, 3] * 6
    assert len(np.unique(rows[:, 0])) == 3


def test_pairs_are_of_any_slices():
    """Global: all different, up to every slice there is. Local: with replacement, each slice as likely as any other."""
    total = sum(DEPTHS.values())
    rows = global_rows("R", DEPTHS, total, rng())
    assert rows[:, 2].tolist() == [1, 2] * total
    every = {(v, s) for v, depth in enumerate(DEPTHS.values()) for s in range(depth)}
    assert {tuple(row) for row in rows[::2, :2].tolist()} == every
    assert np.array_equal(rows[::2, :2], rows[1::2, :2])
    drawn = local_rows("R", DEPTHS, 50 * total, rng())[::2]
    assert {tuple(row) for row in drawn[:, :2].tolist()} == every
    shares = np.bincount(drawn[:, 0]) / (50 * total)
    expected = np.array(list(DEPTHS.values())) / total
    assert abs(shares - expected).max() < 0.03  # of 5600 draws; standard deviation at most 0.006


def test_draws_follow_from_the_generator():
    """The same rows from the same seed, others from another; the rows do not depend on earlier calls."""
    for draw in (global_rows, local_rows):
        for variant in ("R", "D"):
            first, again, other = (draw(variant, DEPTHS, 12, rng(seed)) for seed in (3, 3, 4))
            assert np.array_equal(first, again)
            assert not np.array_equal(first, other)
            assert first.dtype == np.int64


@pytest.mark.parametrize(
    ("batch_size", "n_parts", "count", "blank"),
    [(12, 4, 48, 16), (8, 4, 32, 16), (10, 4, 40, 8), (16, 4, 64, 16), (10, 3, 54, 6)],
)
def test_the_authors_rows_end_blank(batch_size, n_parts, count, blank):
    """Their stitching leaves out the last full block: as many rows as domain_specific_cl leaves at zero."""
    rows = global_rows("D", DEPTHS, batch_size, rng(), n_parts=n_parts, legacy_blank_rows=True)
    assert len(rows) == count
    assert (rows[count - blank :] == BLANK).all()
    filled = rows[: count - blank]
    assert (filled >= 0).all()
    assert (parts(filled, n_parts) == np.arange(len(filled)) % n_parts).all()
    global_terms("D", count, n_parts, upstream=True)


def test_independent_sets_can_share_a_volume():
    """Of 10 volumes in 3 blocks two sets drawn apart have a volume in common in 1 - C(7,3)/C(10,3) = 71% of batches."""
    source = rng()

    def share(independent):
        together = 0
        for _ in range(200):
            volumes = global_rows("D", DEPTHS, 12, source, independent_sets=independent).reshape(3, 4, 4, 3)[..., 0, 0]
            assert len(set(volumes[:, 0].tolist())) == len(set(volumes[:, 2].tolist())) == 3
            together += bool(set(volumes[:, 0].tolist()) & set(volumes[:, 2].tolist()))
        return together / 200

    assert 0.55 < share(True) < 0.85  # standard deviation 0.03
    assert share(False) == 0


def test_a_volume_with_fewer_slices_than_parts_is_named():
    """Whether or not it would be drawn, with its number of slices; and a volume without any."""
    depths = DEPTHS | {"one-slice": 1, "three": 3}
    for draw in (lambda: global_rows("D-", depths, 4, rng()), lambda: local_rows("D", depths, 8, rng())):
        with pytest.raises(
            InputContractError, match=r"2 volume.* fewer slices than the 4 part.*: one-slice \(1\), three \(3\)\. Leave"
        ):
            draw()
    global_rows("D", depths | {"one-slice": 3}, 6, rng(), n_parts=3)
    many = {f"thin{i}": 1 for i in range(9)}
    with pytest.raises(InputContractError, match=r"9 volume.*thin4 \(1\) and 4 more\. Leave"):
        global_rows("D-", many, 4, rng())
    for draw in (global_rows, local_rows):
        with pytest.raises(InputContractError, match=r"1 part.*: hollow \(0\)"):
            draw("R", DEPTHS | {"hollow": 0}, 4, rng())


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: global_rows("D", DEPTHS, 24, rng()), r"10 volume\(s\): a batch of this many slices needs 12"),
        (lambda: global_rows("D-", DEPTHS, 44, rng()), r"10 volume\(s\): .* 11 different volumes"),
        (lambda: local_rows("D", {"a": 9}, 8, rng()), r"1 volume\(s\): .* 2 different volumes"),
        (lambda: local_rows("D", {}, 8, rng()), r"0 volume\(s\)"),
        (lambda: local_rows("D", DEPTHS, 4, rng()), "at least 2 volumes, 8 or more"),
        (lambda: global_rows("D", DEPTHS, 10, rng()), "batch_size=10, n_parts=4: .* a multiple of the parts"),
        (lambda: global_rows("D-", DEPTHS, 0, rng()), "batch_size=0"),
        (lambda: local_rows("D", DEPTHS, 12, rng(), n_parts=0), "n_parts=0"),
        (
            lambda: global_rows("D", DEPTHS, 4, rng(), legacy_blank_rows=True),
            "batch_size=4.* all 16 rows of legacy_blank_rows would",
        ),
        (lambda: global_rows("D", DEPTHS, 12, rng(), n_parts=0, legacy_blank_rows=True), "n_parts=0"),
        (lambda: global_rows("R", {"a": 3}, 4, rng()), r"batch_size=4: 1 or more of the 3 slice\(s\) of 1 volume"),
        (lambda: local_rows("R", {}, 4, rng()), r"0 slice\(s\) of 0 volume"),
        (lambda: local_rows("R", DEPTHS, 0, rng()), "batch_size=0"),
        (lambda: global_rows("L", DEPTHS, 12, rng()), "variant='L': expected one of R, D-, D"),
        (lambda: local_rows("D-", DEPTHS, 12, rng()), "variant='D-': expected one of R, D"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, message):
    """With what was asked for and what there is."""
    with pytest.raises(OptionError, match=message):
        draw()

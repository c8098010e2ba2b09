"""What GLCL's losses take, against the plain loop: `python benchmarks/glcl.py [--repeats 15] [--json]`.

The plain loop goes over the terms: it cuts and normalises each region (or row) once, then adds up one term after the
other. (The authors' TensorFlow graph unrolls the same terms, and cuts anew for each.) In one process both take turns;
the medians count.

- first: the first step of a new loss, which also makes its tables.
- step: forward and backward, from what the network returned to its gradient.
- kept: bytes of tensors that wait for the backward pass, without what the network returned.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from typing import Any

import torch
from measuring import places, print_table, seconds_of
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.entries.glcl.convert import WIDTHS
from zoo.entries.glcl.losses import GlobalContrastiveLoss, LocalContrastiveLoss
from zoo.entries.glcl.regions import starts

ALLOWED = 1e-5
"""Largest relative difference of the two losses: anything above is another loss."""
PARTS = 4
Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """A loss and the batch it is called with."""

    name: str
    variant: str
    rows: int
    blocks: int = 0
    image: int = 192
    region_size: int = 3
    n_regions: int = 13
    n_negatives: int = 5
    project: bool = False

    def shape(self) -> tuple[int, ...]:
        """Of what the network returns: projections, or maps of the decoder's block."""
        side = self.image // 2 ** (5 - self.blocks)
        return (self.rows, WIDTHS[self.blocks - 1], side, side) if self.blocks else (self.rows, 128)

    def losses(self, device: str) -> tuple[Callable[[], Loss], Loss]:
        """What makes ours, and the plain loop."""
        if not self.blocks:
            return lambda: GlobalContrastiveLoss(self.variant, PARTS), lambda z: plain_global(z, self.variant)
        layer = nn.Linear(9 * WIDTHS[self.blocks - 1], 128, bias=False).to(device) if self.project else None

        def ours() -> Loss:
            settings = (self.variant, self.region_size, self.n_regions)
            loss = LocalContrastiveLoss(*settings, n_negatives=self.n_negatives)
            return lambda features: loss(features, layer)

        return ours, lambda features: plain_local(features, self, layer)


CASES = (
    Case("global R, 24 rows", "R", 24),
    Case("global D-, 36 rows (b = 12)", "D-", 36),
    Case("global D, 48 rows (b = 12)", "D", 48),
    Case("global D, 192 rows (b = 48)", "D", 192),
    Case("local R, block 3, projected (published)", "R", 20, 3, project=True),
    Case("local R, block 3", "R", 20, 3),
    Case("local R, block 3, 160 px", "R", 20, 3, image=160),
    Case("local R, block 3, 9 of 1 x 1", "R", 20, 3, region_size=1, n_regions=9),
    Case("local R, block 1, projected", "R", 20, 1, project=True),
    Case("local R, block 5, projected", "R", 20, 5, project=True),
    Case("local D, block 3, 4 negatives", "D", 24, 3, n_negatives=4, project=True),
)


def main() -> None:
    """Measure and print."""
    print_table(__doc__, measure, repeats=15, add_flags=add_flags)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of this benchmark."""
    parser.add_argument("--only", default="", help="part of a case's name")


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each case, device and number of threads."""
    torch.manual_seed(0)
    for device, threads in places(args.threads):
        for case in CASES:
            if args.only in case.name:
                yield {"case": case.name, "device": device, "threads": threads} | compare(case, device, args.repeats)


def compare(case: Case, device: str, repeats: int) -> dict[str, float]:
    """Medians of both ways, which take turns, after one call of each."""
    x = torch.randn(case.shape(), device=device, requires_grad=True)
    make, plain = case.losses(device)
    ours = make()
    values = [loss(x).item() for loss in (ours, plain)]
    assert abs(values[0] - values[1]) <= ALLOWED * values[1], (case, values)
    times = []
    for _ in range(repeats):
        fresh = make()
        times.append([seconds_of(partial(step, loss, x), device) for loss in (fresh, ours, plain)])
    first, later, loop = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    kept, kept_by_loop = (megabytes_kept(loss, x) for loss in (ours, plain))
    return {
        "first, ms": first,
        "step, ms": later,
        "plain loop, ms": loop,
        "ratio": loop / later,
        "kept, MB": kept,
        "plain loop, MB": kept_by_loop,
        "ratio of MB": kept_by_loop / kept,
    }


def step(loss: Loss, x: Tensor) -> None:
    """One forward and backward pass."""
    x.grad = None
    torch.autograd.backward(loss(x))


def megabytes_kept(loss: Loss, x: Tensor) -> float:
    """Size of the storages that a forward pass keeps, each counted once, `x` and what outlives the step left out."""
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        value = loss(x)
    kept.pop(x.untyped_storage().data_ptr(), None)
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values() if not isinstance(tensor, nn.Parameter))
    del value
    return total / 1e6


def plain_global(z: Tensor, variant: str) -> Tensor:
    """Sum over the terms of the global loss, four parts."""
    unit, n = [F.normalize(row, dim=0) for row in z], len(z)
    if variant == "R":
        is_kin, kin = (lambda a, c: a // 2 == c // 2), [(a, a ^ 1) for a in range(n)]
    else:
        is_kin = lambda a, c: a % PARTS == c % PARTS  # noqa: E731
        kin = list(_pairs_of_three(n) if variant == "D-" else _pairs_of_four(n))
    return sum((_term(unit, a, c, is_kin) for a, c in kin), start=z.new_zeros(())) / n


def _pairs_of_three(n: int) -> Iterator[tuple[int, int]]:
    for p in range(n // 3):
        yield from permutations((p, n // 3 + p, 2 * n // 3 + p), 2)


def _pairs_of_four(n: int) -> Iterator[tuple[int, int]]:
    for p in (p for p in range(n) if p % (2 * PARTS) < PARTS):
        kin = [(p + k * PARTS) % n for k in range(4)]
        for first, second in ((0, 1), (0, 2), (2, 3), (1, 3)):
            yield from ((kin[first], kin[second]), (kin[second], kin[first]))


def _term(unit: list[Tensor], anchor: int, positive: int, is_kin: Callable[[int, int], bool]) -> Tensor:
    others = torch.stack([unit[positive], *(row for c, row in enumerate(unit) if not is_kin(anchor, c))])
    logits = others @ unit[anchor] / 0.1
    return logits.logsumexp(0) - logits[0]


def plain_local(features: Tensor, case: Case, layer: nn.Module | None) -> Tensor:
    """Sum over the terms of the local loss, four parts."""
    layout, n = (
        LocalContrastiveLoss("R", case.region_size, case.n_regions, n_negatives=case.n_negatives).layout,
        len(features),
    )
    first, size, regions = starts(features.shape[-1], case.region_size), case.region_size, []
    for image in features.unbind():
        vectors = {}
        for code in layout.codes:
            row, column = first[int(code[0])], first[int(code[1])]
            vector = image[:, row : row + size, column : column + size].permute(1, 2, 0).flatten()
            vectors[code] = F.normalize(vector if layer is None else layer(vector), dim=0)
        regions.append(vectors)
    half = n // 2
    pairs = [(a, a ^ 1) for a in range(n)]
    if case.variant == "D":
        pairs = [(p, p + half) for p in range(half)]
        pairs += [(p, q) for p, q in permutations(range(half), 2) if p % PARTS == q % PARTS]
    total = features.new_zeros(())
    for anchor, other in pairs:
        for code, line in zip(layout.codes[: case.n_regions], layout.lists, strict=True):
            negatives = [regions[image][negative] for image in (anchor, other) for negative in line]
            logits = torch.stack([regions[other][code], *negatives]) @ regions[anchor][code] / 0.1
            total = total + logits.logsumexp(0) - logits[0]
    return total / case.n_regions / n


if __name__ == "__main__":
    main()

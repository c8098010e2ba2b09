"""Names of GLCL's layers, their names in TensorFlow, and the correction of its moving averages.

The layers are called as in krishnabits001/domain_specific_cl, models.py: `enc_c1_a` to `seg_fin_layer`.
"""

from __future__ import annotations

import logging
import math
import re
from typing import TYPE_CHECKING

from zoo.entry import Config, State

if TYPE_CHECKING:
    from torch import Tensor

LEVELS = (16, 32, 64, 128, 128, 128)
"""Channels of the encoder's six levels, of two convolutions each; between two levels the side is halved."""
ENCODER = tuple(f"enc_c{level}_{layer}" for level in range(1, 7) for layer in "ab")
BLOCKS = (
    ("dec_dc6", "dec_c5_a", "dec_c5_b"),
    ("dec_dc5", "dec_c4_a", "dec_c4_b"),
    ("dec_dc4", "dec_c3_a", "dec_c3_b"),
    ("dec_dc3", "dec_c2_a", "dec_c2_b"),
    ("dec_dc2", "dec_c1_a"),
)
"""Layers of the decoder's blocks, from the smallest map to the image's size."""
WIDTHS = (128, 128, 64, 32, 16)
"""Channels of the map that each block returns."""
HEAD = ("seg_c1_a", "seg_c1_b")
"""In the U-Net two convolutions of 3 x 3; in the network of the local loss, under the same names, two of 1 x 1."""
LOGITS = "seg_fin_layer"
PROJECTION = ("reg_nn1", "reg_pred")
"""The head of the global loss."""
REGION = "seg_pred"
"""The layer that the local loss may put on a region of 3 x 3."""
OPTIMISER = {
    r"(.*/)?(Adam|Adagrad|Momentum|RMSProp)(_\d+)?": "optimiser state",
    r"beta[12]_power(_\d+)?": "optimiser state",
}
"""State of TensorFlow's optimisers, by suffixes of a variable's name: pattern -> what it is."""

log = logging.getLogger("zoo")

_VARIABLE = re.compile(
    r"(?P<layer>\w+)/(?:(?P<leaf>W|b|kernel)"
    r"|(?P=layer)_bn/(?:(?P<norm>beta|gamma)"
    r"|(?P=layer)/(?P=layer)_bn/moments/(?P<average>Squeeze|Squeeze_1)/ExponentialMovingAverage))"
)
_LAYER = re.compile(r"(enc|dec|seg|reg)_\w+/")
_LEAVES = {
    **{"W": ".weight", "kernel": ".weight", "b": ".bias", "gamma": "_bn.weight", "beta": "_bn.bias"},
    **{"Squeeze": "_bn.running_mean", "Squeeze_1": "_bn.running_var"},
}
_DECAY = 0.99  # of the averages, domain_specific_cl, layers_bn.py
_BETAS = (0.9, 0.999)  # TensorFlow's defaults of Adam, which the authors keep
_NEGLIGIBLE = 1e-6


def from_tensorflow(state: State) -> State:
    """Return the layers of a TensorFlow bundle under PyTorch's names and in its layout, as views. Pure.

    Kernels (H, W, in, out) become (out, in, H, W), dense ones (in, out) become (out, in); the inputs of `reg_nn1` and
    `seg_pred` stay in their order (row, column, channel), in which this network's modules take them. Tensors of no
    layer, such as the state of the optimiser, are left out; unknown tensors of a layer keep their names.
    """
    layers: State = {}
    for name, tensor in state.items():
        if found := _VARIABLE.fullmatch(name):
            leaf = found["leaf"] or found["norm"] or found["average"]
            layers[f"{found['layer']}{_LEAVES[leaf]}"] = _in_pytorch_layout(leaf, tensor)
        elif _LAYER.match(name) and not any(re.fullmatch(pattern, name) for pattern in OPTIMISER):
            layers[name] = tensor
    return layers


def _in_pytorch_layout(leaf: str, tensor: Tensor) -> Tensor:
    if leaf == "W" and tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1)
    return tensor.T if leaf == "kernel" and tensor.ndim == 2 else tensor


def trained_steps(state: State) -> int | None:
    """Number of training steps of a bundle's network, by Adam's powers of its two rates; None if unknown.

    After t steps they are 0.9^(t+1) and 0.999^(t+1) (tensorflow, python/training/adam.py). The authors' fine-tuning
    builds three optimisers and uses one: the one with the most steps counts.
    """
    found = []
    for name in state:
        if power := re.fullmatch(r"beta2_power(_\d+)?", name):
            powers = [state.get(f"beta{i}_power{power[1] or ''}") for i in (1, 2)]
            first, second = (0.0 if p is None or p.is_meta or p.ndim else float(p) for p in powers)
            found.append(_steps(first, second))
    return max(found, default=0) or None


def _steps(first: float, second: float) -> int:
    """Number of steps that gives both powers; 0 where there is none."""
    if not 0 < second <= _BETAS[1] * (1 + _NEGLIGIBLE):
        return 0
    steps = round(math.log(second) / math.log(_BETAS[1])) - 1
    expected = _BETAS[0] ** (steps + 1)
    return steps if math.isclose(first, expected, rel_tol=1e-3, abs_tol=1e-30) else 0


def correct_averages(values: State, config: Config) -> dict[str, str]:
    """Correct the bias of the norms' moving averages, in place; see `Entry.correct`.

    The authors' averages start at 0, also in a stage that takes over the weights of the one before, and lack the
    correction for it: after t steps they are a share 1 - 0.99^t of their value. Here they are divided by that share,
    which is 1 after the 10 001 steps of a published run. Averages that are all 0 were never updated and become those of
    a new network, mean 0 and variance 1.
    """
    steps = config.get("steps")
    share = 1 - _DECAY**steps if steps else 1.0
    done: dict[str, str] = {}
    for variance in [name for name in values if name.endswith("_bn.running_var")]:
        mean = f"{variance.removesuffix('var')}mean"
        if not values[variance].any() and not values[mean].any():
            values[variance] = values[variance] + 1
            done |= dict.fromkeys((mean, variance), "never updated in the file: as in a new network")
        elif 1 - share > _NEGLIGIBLE:
            for name in (mean, variance):
                values[name] = values[name] / share
                done[name] = f"divided by {share:.6g}, the share of its value that an average has after {steps} steps"
    if never := sum("never" in why for why in done.values()) // 2:
        log.warning(
            "the moving averages of %d norms were never updated in the file: they are taken as mean 0 and variance 1. "
            "Outputs in eval mode mean nothing before the network is trained; for features of a trained network give a "
            "checkpoint that was saved after its training steps",
            never,
        )
    return done

"""No transform loses the gradient of a tensor in silence."""

import pytest
import torch

from zoo.entry import SEED_POINT
from zoo.errors import InputContractError
from zoo.loading import load_transform
from zoo.registry import get_entry, list_models


@pytest.mark.parametrize("name", list_models())
def test_a_gradient_is_kept_or_refused(name):
    """Films of 8 bits, volumes and slices refuse it before anything else; other films keep their graph."""
    contract = get_entry(name).preprocessing
    image = torch.rand((64, 64) if get_entry(name).dimension == 2 else (64, 64, 64), requires_grad=True)
    given = (image, (1.0, 2.0, 3.0)) if contract.crop == SEED_POINT else image
    if get_entry(name).family == "caid":
        (gradient,) = torch.autograd.grad(load_transform(name)(given).sum(), image)
        assert gradient.any()
    else:
        with pytest.raises(InputContractError, match=r"requires a gradient, .*image\.detach\(\)"):
            load_transform(name)(given)

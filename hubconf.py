"""Entry points of torch.hub: one function per model, so that torch.hub.list and torch.hub.help show them.

`torch.hub.load(REPO, "caid_resnet50", tag=TAG, **options)` is `zoo.load_model("caid-resnet50.TAG", **options)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo import loading, registry

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from torch import nn

dependencies = ["torch"]


def _entry_point(name: str) -> Callable[..., nn.Module]:
    def load(tag: str | None = None, **options: Any) -> nn.Module:
        return loading.load_model(f"{name}.{tag}" if tag else name, **options)

    load.__name__ = name.replace("-", "_")
    load.__doc__ = f"""{registry.get_entry(name).summary}.

    Args:
        tag: Which weights; None for what the plain name loads. zoo.model_info({name!r}) lists them.
        **options: Those of zoo.load_model.
    """
    return load


globals().update({name.replace("-", "_"): _entry_point(name) for name in registry.list_models()})

"""Self-supervised models for medical images: a name becomes a ready network.

Example:
    >>> model = zoo.load_model("caid-resnet50")
    >>> transform = zoo.load_transform("caid-resnet50")
    >>> features = model(transform("chest.png").unsqueeze(0))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from zoo.version import __version__ as __version__

if TYPE_CHECKING:
    from zoo import embedding as embedding
    from zoo import errors as errors
    from zoo import examination as examination
    from zoo.checkpoint import inspect_checkpoint as inspect_checkpoint
    from zoo.checkpoint import load_report as load_report
    from zoo.embedding import Embedder as Embedder
    from zoo.evaluation.probing import probe as probe
    from zoo.features import read_features as read_features
    from zoo.learning_rates import param_groups as param_groups
    from zoo.loading import download_weights as download_weights
    from zoo.loading import load_model as load_model
    from zoo.loading import load_transform as load_transform
    from zoo.registry import list_models as list_models
    from zoo.registry import model_info as model_info
    from zoo.tasks.predictor import load_predictor as load_predictor

_HOMES = {
    "Embedder": "embedding",
    "download_weights": "loading",
    "inspect_checkpoint": "checkpoint",
    "list_models": "registry",
    "load_model": "loading",
    "load_predictor": "tasks.predictor",
    "load_report": "checkpoint",
    "load_transform": "loading",
    "model_info": "registry",
    "param_groups": "learning_rates",
    "probe": "evaluation.probing",
    "read_features": "features",
}

_MODULES = {"embedding": "embedding", "errors": "errors", "examination": "examination"}

__all__ = [
    "__version__",
    *_MODULES,
    *_HOMES,
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that `import zoo` costs nothing."""
    if name in _MODULES:
        return import_module(f"zoo.{_MODULES[name]}")
    if name not in _HOMES:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    value: object = getattr(import_module(f"zoo.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)

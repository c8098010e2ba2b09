"""What each network of the registry can do beyond `forward`, and the reason where it cannot.

`test_vocabulary` holds every cell; `scripts/capabilities_table.py` writes the table into CONTRIBUTING.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from zoo.registry import entries

CAPABILITIES = {
    "features": "`num_features`, `feature_info`, `forward_features`, `forward_intermediates`",
    "head": "`get_classifier`, `reset_classifier(n)`",
    "recompute": "`set_grad_checkpointing()`",
    "no decay": "`no_weight_decay()`",
    "copies": "`copy.deepcopy`, `pickle`, the state dict into a second network",
    "DDP": "every parameter has a gradient, as DistributedDataParallel expects",
    "per sample": "gradients of each image of a batch, `torch.func.vmap` of `grad`",
    "batch": "`torch.export` for any number of images",
    "sizes": "`torch.export` for any size",
    "compile": "`torch.compile(fullgraph=True)`",
    "ONNX": "`torch.onnx.export`, any number of images, the numbers of onnxruntime",
    "bf16": "`bfloat16` on a CPU, in eval mode",
    "one": "a batch of one in training",
}


@dataclass(frozen=True)
class No:
    """Why a network cannot, and how it says so."""

    reason: str
    error: str
    """Name of the exception."""
    said: str
    """Pattern of its message."""


_WINDOWS = No(
    "the windows of a Swin transformer are laid as the graph is made, for the sides of the example",
    "InputContractError",
    "are open in this graph",
)
EXCEPTIONS = {
    ("monai-ssl-vitautoenc", "head"): No(
        "it restores the volume and has no classes", "OptionError", "monai-ssl-unetr' segments"
    ),
    ("drasclr-cnn3d", "sizes"): No("patches have 32 voxels a side", "UserError", "specialized it to be a constant"),
    ("drasclr-cnn3d", "one"): No(
        "the last map of a patch is one voxel, of which there are no statistics", "InputContractError", "one patch"
    ),
    ("brainiac-vitb16", "sizes"): No("whole heads of 96 voxels a side", "UserError", "specialized it to be a constant"),
    ("rad-dino-vitb14", "sizes"): No(
        "the factors of DINOv2's interpolation would be constants of the graph", "InputContractError", "are open in"
    ),
    **{(name, "sizes"): _WINDOWS for name in entries() if "-swin" in name},
}

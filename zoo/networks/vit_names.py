"""Names of the tensors of MONAI's 3D ViT in the files of any MONAI, and of what its forward pass never uses. Pure.

What changed between the versions: monai/networks/nets/vit.py and the blocks it uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.errors import CheckpointMismatchError

if TYPE_CHECKING:
    from zoo.entry import State

PATCH = 16
"""Side of a token's cube in voxels."""
POOLINGS = ("mean", "first")
"""What stands for a volume: the mean of its tokens, or the first one alone."""
STEM = "patch_embedding.patch_embeddings.weight"
TABLE = "patch_embedding.position_embeddings"
VIT = ("patch_embedding.", "blocks.", "norm.")
"""Parts of every network with a ViT."""
ANCHORS = (TABLE, "patch_embedding.patch_embeddings.bias", "blocks.0.attn.qkv.weight", "norm.weight")
"""Names by which a ViT is found behind whatever prefix."""
DEAD = {
    r"(vit\.)?patch_embedding\.cls_token": "class token, which no forward pass used (MONAI 0.8)",
    r"(vit\.)?blocks\.\d+\.(norm_)?cross_attn\..+": "cross attention, which no forward pass used (MONAI 1.4 and later)",
}
"""Dead parameters: pattern -> what they are."""
RESTORING = {r"conv3d_transpose(_1)?\.(weight|bias)": "decoder of the auto-encoder"}
CLASSIFYING = {r"classification_head\.(weight|bias)": "classifier on the ViT"}


def refuse_class_token(network: State, prefix: str) -> None:
    """Raise `CheckpointMismatchError` where a ViT, found behind `prefix`, was trained with a class token."""
    if "cls_token" in network:
        raise CheckpointMismatchError(
            f"the file holds a ViT that was trained with a class token ({prefix}cls_token; MONAI's "
            "classification=True), expected one that pools its tokens. Their features are not interchangeable: load "
            "the file with MONAI's own class"
        )


def complete_vit(state: State) -> State:
    """Add the norms that MONAI's classes have and never use, so that they load the ViT strictly.

    The classifier is left out: MONAI's own looks at a class token.
    """
    plain = {name: tensor for name, tensor in state.items() if not name.startswith("classification_head.")}
    return plain | neutral_norms(plain)


def neutral_norms(state: State) -> State:
    """What the installed MONAI builds for cross attention in every block of a network, and never uses.

    These are norms since 1.4, and until 1.6 the attention itself, which is 0 here.
    """
    import torch

    norms = {name.replace(".norm1.", ".norm_cross_attn."): t for name, t in state.items() if ".norm1." in name}
    neutral = {n: torch.ones_like(t) if n.endswith(".weight") else torch.zeros_like(t) for n, t in norms.items()}
    if _builds_cross_attention():
        for name, bias in state.items():
            if name.endswith(".norm1.bias"):
                attention, square = name.replace(".norm1.bias", ".cross_attn."), bias.new_zeros(len(bias), len(bias))
                neutral |= {
                    f"{attention}{part}.weight": square.clone() for part in ("out_proj", "to_q", "to_k", "to_v")
                }
                neutral[f"{attention}out_proj.bias"] = torch.zeros_like(bias)
    return neutral


def _builds_cross_attention() -> bool:
    from monai.networks.blocks.transformerblock import TransformerBlock
    from torch import nn

    return not isinstance(TransformerBlock(hidden_size=1, mlp_dim=1, num_heads=1).cross_attn, nn.Identity)


def is_brainiac(state: State, prefix: str) -> bool:
    """Whether what stands beside a ViT, found behind `prefix`, shows it to be BrainIAC's; a bare one does not tell.

    Its pre-training writes `backbone.` beside `projection_head.`, its fine-tuning `backbone.backbone.` beside
    `classifier.fc.` (AIM-KannLab/BrainIAC, src/model.py).
    """
    owner = prefix.removesuffix("backbone.")
    if owner == prefix:
        return False
    head = f"{owner}projection_head."
    is_tuned = f"{owner.removesuffix('backbone.')}classifier.fc.weight" in state and owner.endswith("backbone.")
    return is_tuned or any(name.startswith(head) for name in state)


def is_monai_ssl(state: State, prefix: str) -> bool:
    """Whether what stands beside a ViT shows it to be an auto-encoder's or a UNETR's, as MONAI SSL's files are."""
    owner = prefix.removesuffix("vit.")
    return f"{prefix}conv3d_transpose.weight" in state or (
        owner != prefix and f"{owner}encoder1.layer.conv1.conv.weight" in state
    )

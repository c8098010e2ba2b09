"""MONAI SSL checkpoints as every MONAI since 0.8 writes them, filled so that the outputs of MONAI 0.8.1 are known."""

import json
import re

import numpy as np
import torch
from caid_files import PARITY, behind, filled
from parity.fill import image

from zoo.checkpoint.skeleton import without_values

ENCODER, AUTOENCODER, UNETR, SWIN = (f"monai-ssl-{part}" for part in ("vitb16", "vitautoenc", "unetr", "swinunetr"))
NAMES = (ENCODER, AUTOENCODER, UNETR, SWIN)
VIT_KEYS, UNETR_KEYS = (json.loads((PARITY / f"{n}_keys.json").read_text("utf-8")) for n in ("vit", "unetr"))
VERSIONS = ("0.8", "0.9", "1.4", "1.6")
"""The first of each run of versions that write the same names: 0.8.0 and 0.8.1, to 1.3.2, 1.4 and 1.5, since 1.6."""
SMALL = {"img_size": 32, "hidden_size": 64, "mlp_dim": 128}
"""Options of a network of one head that loads in no time."""

_DEAD_CONVOLUTION = re.compile(r"encoder[23]\.blocks\.\d+\.1\.conv3\.")


def small(shapes, *, hidden=64, mlp=128, positions=8, feature=16):
    """The same names with the shapes of a small network."""
    widths = {768: hidden, 2304: 3 * hidden, 3072: mlp, 216: positions, **{16 * 2**i: feature * 2**i for i in range(4)}}
    kernels = ("patch_embeddings.weight",)

    def shrunk(name, shape):
        kept = len(shape) - 3 if len(shape) == 5 else len(shape)
        sides = shape[kept:] if name.endswith(kernels) or kept < len(shape) else []
        return (*(widths.get(size, size) for size in shape[:kept]), *sides)

    return {name: shrunk(name, shape) for name, shape in shapes.items()}


def filled_autoencoder(seed=0, shapes=VIT_KEYS):
    """MONAI 0.8.1's auto-encoder, 142 tensors."""
    return filled(shapes, seed)


def filled_unetr(autoencoder, seed=0, shapes=UNETR_KEYS):
    """MONAI 0.8.1's UNETR around the ViT of an auto-encoder, 174 tensors."""
    vit = {f"vit.{name}": tensor for name, tensor in encoder_part(autoencoder).items()}
    return filled({n: shape for n, shape in shapes.items() if not n.startswith("vit.")}, seed) | vit


def written_by(version, state):
    """The names that a version writes for what MONAI 0.8.1 wrote as `state`; what nobody uses is random."""
    kept = dict(state)
    if version != "0.8":
        kept = {n: t for n, t in kept.items() if not n.endswith("patch_embedding.cls_token")}
        kept = {n: t for n, t in kept.items() if not _DEAD_CONVOLUTION.match(n)}
    for name, tensor in list(kept.items()):
        block, _, leaf = name.rpartition(".norm1.")
        width = len(tensor)
        if block and version in ("1.4", "1.6"):
            kept[f"{block}.norm_cross_attn.{leaf}"] = torch.randn(width)
        if block and version == "1.4" and leaf == "weight":
            kept |= {
                f"{block}.cross_attn.{part}.weight": torch.randn(width, width) for part in ("to_q", "to_k", "to_v")
            }
            kept |= {f"{block}.cross_attn.out_proj.weight": torch.randn(width, width)}
            kept |= {f"{block}.cross_attn.out_proj.bias": torch.randn(width)}
    return kept


def alive(state):
    """What a forward pass uses."""
    dead = r"(vit\.)?patch_embedding\.cls_token|(vit\.)?blocks\.\d+\.(norm_)?cross_attn\..+"
    return {n: t for n, t in state.items() if not re.fullmatch(dead, n) and not _DEAD_CONVOLUTION.match(n)}


def encoder_part(state):
    """The ViT of an auto-encoder."""
    return {name: tensor for name, tensor in state.items() if not name.startswith("conv3d_")}


def with_perceptron(state):
    """The same network with `pos_embed="perceptron"`: the projection is a linear layer over z, y, x, channel."""
    (stem,) = (name for name in state if name.endswith("patch_embeddings.weight"))
    rows = state[stem].permute(0, 2, 3, 4, 1).flatten(1).contiguous()
    linear = {stem.replace(".weight", ".1.weight"): rows, stem.replace(".weight", ".1.bias"): state[stem[:-6] + "bias"]}
    return {n: t for n, t in state.items() if "patch_embeddings" not in n} | linear


def training_checkpoint(state):
    """What the tutorial's scripts write around the names."""
    adam = {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    return {"epoch": 500, "state_dict": state, "optimizer": adam, "max_accuracy": 0.0}


FORMS = {
    "ssl_train.ipynb": lambda state: training_checkpoint(state),
    "in DDP": lambda state: training_checkpoint(behind("module.", state)),
    "bare": lambda state: state,
    "model": lambda state: {"model": state},
    "compiled": lambda state: behind("_orig_mod.", state),
    "compiled in DDP": lambda state: {"state_dict": behind("module._orig_mod.", state)},
    "a Lightning attribute": lambda state: {"state_dict": behind("net.", state) | {"loss.weight": torch.ones(2)}},
    "the zoo's pre-training": lambda state: {"model": behind("network.", state), "epoch": 1},
}
"""From a network's tensors to what a file holds."""


def swin_shapes(feature=12, classes=14):
    """Names and shapes of MONAI's Swin UNETR with one channel."""
    from monai.networks.nets import SwinUNETR

    with without_values():
        network = SwinUNETR(in_channels=1, out_channels=classes, feature_size=feature)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def filled_swin(shapes, seed=0):
    """A Swin UNETR; the indices of relative positions are those of its windows."""
    from monai.networks.nets.swin_unetr import WindowAttention

    index = WindowAttention(12, 3, (7, 7, 7)).relative_position_index
    tensors = filled({n: s for n, s in shapes.items() if not n.endswith("_index")}, seed)
    return {name: tensors.get(name, index) for name in shapes}


def published_swin(state):
    """The published pre-training: the transformer as `encoder.` with its layers nested, and a head that restored."""
    nested = {re.sub(r"^swinViT\.(layers\d\.0\.)?", _nest, n): t for n, t in state.items() if not n.startswith("out.")}
    width = len(state["encoder1.layer.conv1.conv.weight"])
    last = 16 * width
    beside = {
        "encoder.mask_token": torch.zeros(1, 1, width),
        "encoder.norm.weight": torch.ones(last),
        "encoder.norm.bias": torch.zeros(last),
        "out.conv.conv.weight": torch.ones(1, width, 1, 1, 1),
        "out.conv.conv.bias": torch.zeros(1),
    }
    return {"model": nested | beside, "epoch": 900, "optimizer": {"param_groups": [{"lr": 1e-4, "params": [0]}]}}


def _nest(match):
    return f"encoder.{match[1]}0." if match[1] else "encoder."


def paper_swin(state):
    """The network of "Disruptive Autoencoders" in that form: two convolutions first, dead shortcuts, fc1, fc2."""
    content = published_swin(state)
    names = {n.replace(".linear1.", ".fc1.").replace(".linear2.", ".fc2."): t for n, t in content["model"].items()}
    width = len(names.pop("encoder.patch_embed.proj.weight"))
    del names["encoder.patch_embed.proj.bias"]
    stem = {"conv1.conv.weight": (width, 1, 3, 3, 3), "conv2.conv.weight": (width, width, 3, 3, 3)}
    stem |= {f"norm{i}.{leaf}": (width,) for i in (1, 2) for leaf in ("weight", "bias")}
    return content | {"model": names | filled(behind("encoder.patch_embed.proj.", stem)) | dead_shortcuts(width)}


def dead_shortcuts(width):
    """What MONAI 0.8 made for each block of the decoder's skips, and never used."""
    widths = {2: width, 3: 2 * width, 4: 4 * width, 10: 16 * width}
    return {f"encoder{i}.layer.conv3.conv.weight": torch.ones(w, w, 1, 1, 1) for i, w in widths.items()}


def swin_keys(form):
    """Names and shapes of a published file, or of the U-Net around the transformer (`unet`)."""
    return json.loads((PARITY / f"swin_{form}_keys.json").read_text("utf-8"))


def filled_form(form):
    """The tensors of a published file at full size, which `swin_<form>_0.npz` was computed from."""
    return filled_swin(swin_keys(form))


def ssl_head(ct5050):
    """The same transformer as today's SSLHead saves it: as `swinViT.` under MONAI's names, beside other heads."""
    names = {n.replace(".fc1.", ".linear1.").replace(".fc2.", ".linear2."): t for n, t in ct5050.items()}
    swin = {f"swinViT.{n}": t for n, t in names.items() if n.startswith(("patch_embed.", "layers"))}
    heads = {"rotation_head.weight": (4, 8), "contrastive_head.weight": (512, 8), "conv.0.weight": (4, 8, 3, 3, 3)}
    return {"state_dict": behind("module.", swin | {name: torch.zeros(shape) for name, shape in heads.items()})}


def bare_swin(state):
    """The transformer alone as `SwinUNETR.load_from` reads it: behind `module.`, perceptrons fc1 and fc2, a head."""
    swin = {n.removeprefix("swinViT."): t for n, t in state.items() if n.startswith("swinViT.")}
    renamed = {n.replace(".linear1.", ".fc1.").replace(".linear2.", ".fc2."): t for n, t in swin.items()}
    heads = {"rotation_head.weight": torch.zeros(4, 8), "norm.weight": torch.ones(8)}
    heads |= {"contrastive_head.bias": torch.zeros(512), "convTrans3d.weight": torch.zeros(8, 1, 4, 4, 4)}
    return {"state_dict": behind("module.", renamed | heads)}


def reference():
    """Outputs of MONAI 0.8.1: two blocks at every eighth token, reconstruction and logits at every eighth voxel."""
    arrays = {}
    for name in ("vit", "unetr"):
        with np.load(PARITY / f"{name}_0.npz") as stored:
            arrays |= dict(stored)
    return arrays


def reference_input(side=96):
    """The volume that `reference` was computed from, `(1, 1, 96, 96, 96)` in [0, 1]; or a smaller one."""
    return torch.from_numpy(np.clip(0.5 + 0.25 * image("x", (1, 1, side, side, side), 0), 0, 1).astype(np.float32))

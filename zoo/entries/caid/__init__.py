"""CAiD: context-aware instance discrimination on chest radiographs (Hosseinzadeh Taher et al., MIDL 2022).

A ResNet-50 trained by MoCo-v2 on distorted views, together with a U-Net on it that restores the undistorted image.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from zoo.entry import Config, Entry, Preprocessing, State, Windows
from zoo.tensor_names import find_prefix, rename_keys, segmenter_remark, strip_prefix

if TYPE_CHECKING:
    from torch import nn

PREPROCESSING = Preprocessing(channels=("grey", "grey", "grey"), size=(224, 224), resize=256, modality="CR")

_UNUSED = {
    r"encoder_k\..*": "key network",
    r"queue(_ptr)?": "queue of negatives",
    r"fc\.[02]\.(weight|bias)": "projection head",
}
_UNUSED_BY_ENCODER = _UNUSED | {r"(decoder|segmentation_head)\..*": "decoder: not part of the encoder"}
_ONE_CHANNEL = (
    "its one output is taken for the reconstruction, behind a sigmoid; if the file is of a segmentation, "
    "num_classes=1 gives its logits"
)
_RESNET = ("conv1.weight", "layer1.0.conv1.weight", "layer4.2.conv3.weight")
_LAST = "segmentation_head.0.weight"
_STAGES = (("conv1.", "bn1."), ("layer1.",), ("layer2.",), ("layer3.",), ("layer4.",))


def build_encoder(config: Config) -> nn.Module:
    """ResNet-50 of timm: pooled features `(N, 2048)`, logits `(N, num_classes)`, or with `projection` `(N, 128)`."""
    import timm
    from torch import nn

    from zoo.entries.caid.encoder import ResetClassifier

    channels, size = config["in_channels"], PREPROCESSING.size
    projection = config["projection"]
    model: nn.Module = timm.create_model(
        "resnet50",
        pretrained=False,
        num_classes=0 if projection else config["num_classes"],
        in_chans=channels,
        zero_init_last=False,  # as torchvision, and so the authors, start it
        pretrained_cfg={
            "architecture": "resnet50",
            "num_classes": 0 if projection else config["num_classes"],
            "input_size": (channels, *size),
            "mean": (0.0,) * channels,
            "std": (1.0,) * channels,
            "crop_pct": size[0] / (PREPROCESSING.resize or size[0]),
            "interpolation": "bilinear",
            "pool_size": (7, 7),
            "first_conv": "conv1",
            "classifier": "fc",
        },
    )
    model.no_weight_decay = set  # type: ignore[assignment]  # timm's class lacks the method; `set()` names nothing
    model.reset_classifier = ResetClassifier(model)  # type: ignore[arg-type, assignment]
    if projection:
        hidden = (nn.Linear(2048, 2048), nn.ReLU()) if config.get("projection_layers", 2) == 2 else ()
        model.fc = nn.Sequential(*hidden, nn.Linear(2048, 128))
    return model


def build_unet(config: Config) -> nn.Module:
    """U-Net of segmentation_models_pytorch, `(N, C, H, W)` for sides that divide by 32.

    Without `num_classes` C is one sigmoid channel, the reconstruction; with it, C logits; with 0, the decoder's maps.
    """
    from zoo.entries.caid.model import CAiDUNet

    return CAiDUNet(config["in_channels"], config["num_classes"])


def convert_encoder(state: State) -> tuple[State, Config]:
    """Keep the ResNet of any of the family's files under torchvision's names, with its head as `fc`."""
    prefix = find_prefix(state, _RESNET)
    if prefix is None:
        return dict(state), {}
    encoder = strip_prefix(state, prefix)
    owner = re.sub(r"(^|(?<=\.))(backbone\.)?encoder\.$", "", prefix)
    if owner != prefix:
        encoder |= {f"fc.{name}": tensor for name, tensor in strip_prefix(state, f"{owner}fc.").items()}
    unet = strip_prefix(state, prefix.removesuffix("encoder."))
    remark = segmenter_remark(unet, ("decoder.",), _LAST, restores=True)
    if "encoder_q" in prefix.split("."):  # a projection of one layer; elsewhere `fc.weight` is a classifier
        encoder = rename_keys(encoder, {"fc.weight": "fc.0.weight", "fc.bias": "fc.0.bias"})
    return encoder, _encoder_facts(encoder) | remark


def _encoder_facts(encoder: State) -> Config:
    if "fc.weight" in encoder and encoder["fc.weight"].ndim == 2:
        return {"num_classes": encoder["fc.weight"].shape[0]}
    if "fc.0.weight" in encoder:
        return {"projection_layers": 2 if "fc.2.weight" in encoder else 1}
    return {}


def convert_unet(state: State) -> tuple[State, Config]:
    """Keep the U-Net of any of the family's files, under the names of segmentation_models_pytorch."""
    prefix = find_prefix(state, [f"encoder.{anchor}" for anchor in _RESNET])
    if prefix is None:
        return dict(state), {}
    unet = strip_prefix(state, prefix)
    head = unet.get(_LAST)
    if head is None or head.ndim != 4:
        return unet, {}
    return unet, {"unclear": {"num_classes": _ONE_CHANNEL}} if head.shape[0] == 1 else {"num_classes": head.shape[0]}


def reset_head(module: nn.Module) -> None:
    """Start a segmentation head as segmentation_models_pytorch does."""
    from torch import nn

    if isinstance(module, nn.Conv2d) and module.bias is not None:
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)


ENTRIES = (
    Entry(
        name="caid-resnet50",
        summary="2D ResNet-50 for chest radiographs: pooled features (N, 2048)",
        family="caid",
        modalities=("xray",),
        anatomy="chest",
        dimension=2,
        parameters=23_508_032,
        num_features=2048,
        build=build_encoder,
        convert=convert_encoder,
        config={"num_classes": 0, "in_channels": 3, "projection": False},
        required=tuple(prefix for stage in _STAGES for prefix in stage),
        head=("fc.",),
        stem="conv1.weight",
        stages=_STAGES,
        preprocessing=PREPROCESSING,
        unused=_UNUSED_BY_ENCODER,
    ),
    Entry(
        name="caid-resnet50-unet",
        summary="2D U-Net on the ResNet-50: restores the image, or segments (N, num_classes, H, W)",
        family="caid",
        modalities=("xray",),
        anatomy="chest",
        dimension=2,
        parameters=32_521_105,
        num_features=None,
        build=build_unet,
        convert=convert_unet,
        config={"num_classes": None, "in_channels": 3},
        required=("encoder.", "decoder."),
        head=("segmentation_head.",),
        stem="encoder.conv1.weight",
        stages=(
            *(tuple(f"encoder.{prefix}" for prefix in stage) for stage in _STAGES),
            *((f"decoder.blocks.{i}.",) for i in range(5)),
        ),
        preprocessing=PREPROCESSING,
        unused=_UNUSED,
        settled=("num_classes",),
        reset=reset_head,
        restores=True,
        windows=Windows(()),
    ),
)

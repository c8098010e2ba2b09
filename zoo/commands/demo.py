"""Runs both CAiD networks on one film and draws the results in one picture, offline, for `zoo demo`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from zoo.checkpoint import load_report
from zoo.commands.phantom import chest_phantom
from zoo.loading import load_model, load_transform
from zoo.tasks.panels import draw_panels

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zoo.tasks.panels import Panel
    from zoo.transforms import ImageInput, ImageTransform

Pixels: TypeAlias = NDArray[np.uint8]

TAG = "chestxray14-800"
PHANTOM = "synthetic phantom, drawn by the zoo: no patient"
_MASK_SEED = 12  # a fifth of the film, parts of both lungs
_FINER_SIDE = 256  # the map of a ResNet has 2 x 2 positions at 64 pixels and 7 x 7 at 224, too few to look at


def run_demo(image: str | Path | None, out: Path, *, tag: str = TAG, echo: Callable[[str], object] = print) -> Path:
    """Load `caid-resnet50` and `caid-resnet50-unet`, apply them to one film and draw the results in `out`.

    Four panels: the film, a copy with rectangles cut out, the U-Net's reconstruction of that copy, and the first three
    principal components of the encoder's feature map.

    Args:
        image: Any image file that `load_transform` reads; None draws a phantom.
        out: The PNG to write; its folder is made.
        tag: The weights of both networks.
        echo: Takes each line of the report.

    Returns:
        `out`.

    Raises:
        InputContractError: `image` is not a film; `FileNotFoundError` where there is none.
        WeightsUnavailableError: There are no weights of this tag here.
    """
    import zoo

    names = f"caid-resnet50.{tag}", f"caid-resnet50-unet.{tag}"
    transform = cast("ImageTransform", load_transform(names[0]))
    if image is not None:
        transform(image)  # refused before the networks are loaded
    encoder, unet = (load_model(name) for name in names)
    for model in (encoder, unet):
        echo(str(load_report(model)))

    film = chest_phantom() if image is None else image
    feature, panels = look(encoder, unet, transform, film)
    echo(f"{names[0]}: feature of shape {tuple(feature.shape)}, norm {feature.norm():.3f}")

    origin = PHANTOM if image is None else Path(image).name
    trained_by = zoo.model_info(names[0]).trained_by
    footer = f"Film: {origin}.  Weights: {' and '.join(names)}, trained by: {trained_by}."
    out.parent.mkdir(parents=True, exist_ok=True)
    draw_panels(panels, footer).save(out, format="PNG")
    return out


def look(
    encoder: nn.Module, unet: nn.Module, transform: ImageTransform, film: ImageInput
) -> tuple[Tensor, list[Panel]]:
    """Apply both networks to a film; return the pooled feature `(D,)` and the four panels."""
    import torch

    forward_features: Any = encoder.forward_features
    image = transform(film)
    masked = mask_rectangles(image, _MASK_SEED)
    with torch.inference_mode():
        feature: Tensor = encoder(image[None])[0]
        rebuilt = unet(masked[None])[0]
        large = finer(transform)(film)
        feature_map = forward_features(large[None])[0]
    side, (rows, columns) = image.shape[-1], feature_map.shape[-2:]
    position = f"{rows} x {columns} positions at {large.shape[-1]} px"
    return feature, [
        ("Image", f"as the networks see it, {side} px", to_pixels(image)),
        ("Masked copy", "rectangles set to 0", to_pixels(masked)),
        ("Reconstruction", "by the U-Net, from the masked copy alone", to_pixels(rebuilt)),
        ("Features", f"3 principal components, {position}", principal_components(feature_map)),
    ]


def finer(transform: ImageTransform) -> ImageTransform:
    """Return the same transform for a larger input: twice the size, or as many times as `_FINER_SIDE` takes."""
    return transform.finer(max(2, _FINER_SIDE // min(transform.preprocessing.size)))


def mask_rectangles(image: Tensor, seed: int = 0) -> Tensor:
    """Return a copy of `image` (C, H, W) with up to ten random rectangles set to 0, as CAiD's inner cut-out has them.

    Sides are 10 to 70 parts in 224 of the image's, at least 3 parts from its border; after each rectangle the drawing
    stops with probability 0.1.
    """
    rng = np.random.default_rng(seed)
    masked = image.clone()
    height, width = image.shape[-2:]
    for _ in range(10):
        tall, wide = (int(rng.integers(10, 71)) for _ in range(2))
        top, left = (int(rng.integers(3, 224 - side - 3 + 1)) for side in (tall, wide))
        rows = slice(top * height // 224, (top + tall) * height // 224)
        columns = slice(left * width // 224, (left + wide) * width // 224)
        masked[..., rows, columns] = 0
        if rng.random() < 0.1:
            break
    return masked


def principal_components(feature_map: Tensor) -> Pixels:
    """Return the three strongest components of `(D, H, W)` features over their positions as `(H, W, 3)` colours.

    Each component runs from 0 to 255 between its 5th and 95th percentile, its longer tail upwards, so that the colours
    do not depend on the arbitrary sign of a component.
    """
    depth, height, width = feature_map.shape
    features = feature_map.detach().double().cpu().numpy().reshape(depth, -1).T
    left, strengths, _ = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    scores = np.zeros((height * width, 3))
    scores[:, : min(3, len(strengths))] = left[:, :3] * strengths[:3]
    scores *= np.where((scores**3).sum(axis=0) < 0, -1, 1)
    low, high = np.percentile(scores, (5, 95), axis=0)
    colours: NDArray[np.float64] = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1)
    return np.rint(255 * colours).astype(np.uint8).reshape(height, width, 3)


def to_pixels(image: Tensor) -> Pixels:
    """Return the first channel of an image `(C, H, W)` in [0, 1] as 8-bit `(H, W)`."""
    grey: Pixels = (image[0].clamp(0, 1) * 255).round().byte().cpu().numpy()
    return grey

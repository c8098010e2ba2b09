"""timm's ViT-B/14 of DINOv2, whose table of positions is interpolated for other sizes as DINOv2 does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from timm.models import build_model_with_cfg
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.entries.rad_dino.contract import PREPROCESSING
from zoo.entries.rad_dino.convert import DEPTH, PATCH, SIDE, WIDTH
from zoo.errors import InputContractError
from zoo.networks.sizes import check_fixed
from zoo.networks.vocabulary import resetting, stages_wanted

_OFFSET = 0.1
"""Of a patch, which DINOv2 adds to the number wanted before it divides by that of the table."""
_VARIANT = "vit_base_patch14_dinov2"


class RadDinoViT(VisionTransformer):
    """timm's class with its tensors, for films of any sides that are multiples of 14.

    At other sizes than 518 timm's own would interpolate the table of positions in another way than training did, and
    give other features. `vit_b14` makes it.
    """

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Return the CLS token after the last norm, `(N, 768)`, or logits `(N, num_classes)`.

        Args:
            x: Films `(N, C, H, W)`, sides multiples of 14.

        Raises:
            InputContractError: A side is no multiple of 14, or there are other channels than the network takes.
        """
        return self.forward_head(self._tokens(x))

    def forward_features(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Return the tokens of the patches after the last norm as a map, `(N, 768, H/14, W/14)`.

        Args:
            x: Films `(N, C, H, W)`, sides multiples of 14.

        Raises:
            InputContractError: As `forward`.
        """
        patches = self._tokens(x)[:, self.num_prefix_tokens :]
        return patches.transpose(1, 2).reshape(x.shape[0], WIDTH, x.shape[2] // PATCH, x.shape[3] // PATCH)

    def forward_intermediates(  # type: ignore[override]
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = True,
        **options: Any,
    ) -> Any:
        """Return the maps `(N, 768, H/14, W/14)` of the blocks, as timm's method but for the last default.

        Args:
            x: Films `(N, C, H, W)`, sides multiples of 14.
            indices: Which blocks: the last n, those of a list, negative ones counted from the end, or all of them.
            return_prefix_tokens: Whether to return pairs of maps and of the CLS token `(N, 1, 768)`.
            norm: Whether to apply the last norm to each.
            stop_early: Whether to leave out the blocks behind the last one wanted.
            output_fmt: `"NCHW"` or `"NLC"`, tokens `(N, patches, 768)`.
            intermediates_only: False for the tuple of all tokens after the last norm, as `forward_head` takes them, and
                the list.
            **options: timm's further ones.

        Raises:
            InputContractError: As `forward`.
            OptionError: There is no such block.
        """
        _check_films(x, self.patch_embed.proj.in_channels)
        wanted = sorted(stages_wanted(indices, len(self.blocks)))
        return super().forward_intermediates(
            x, wanted, return_prefix_tokens, norm, stop_early, output_fmt, intermediates_only, **options
        )

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return what the head makes of all tokens.

        Args:
            x: Tokens after the last norm, `(N, 1 + patches, 768)`.
            pre_logits: Whether to return what the classifier would take.

        Raises:
            InputContractError: `x` is no tokens, such as the map of `forward_features`, which lacks the CLS token.
        """
        if x.ndim != 3:
            raise InputContractError(
                f"forward_head got a tensor of shape {tuple(x.shape)}; tokens (N, 1 + patches, {WIDTH}) are expected. "
                "The map that forward_features returns is without the CLS token: call the network itself"
            )
        return super().forward_head(x, pre_logits=pre_logits)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new one with random weights, as timm's method; the report says so.

        `num_classes` and `global_pool` are timm's; what is raised is as of `Vocabulary.reset_classifier`.
        """
        with resetting(self, num_classes, "head"):
            super().reset_classifier(num_classes, global_pool)

    def set_input_size(
        self, img_size: tuple[int, int] | None = None, patch_size: tuple[int, int] | None = None
    ) -> None:
        """Change the size that the table of positions is for, as timm's method; the table is interpolated as always.

        Args:
            img_size: Pixels. Inputs of other sizes are taken before and after.
            patch_size: Pixels of a patch.
        """
        table, grid = cast("nn.Parameter", self.pos_embed), self.patch_embed.grid_size
        super().set_input_size(img_size, patch_size)
        if self.pos_embed is not table:
            resampled = resample_positions(table.detach(), grid, self.patch_embed.grid_size)
            self.pos_embed = nn.Parameter(resampled, requires_grad=table.requires_grad)

    def _tokens(self, x: Tensor) -> Tensor:
        _check_films(x, self.patch_embed.proj.in_channels)
        return super().forward_features(x)

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Put CLS before the patches `(N, h, w, 768)` and add the positions: timm's step before the blocks."""
        count, height, width, _ = x.shape
        first, table = cast("Tensor", self.cls_token), cast("Tensor", self.pos_embed)
        table = resample_positions(table, self.patch_embed.grid_size, (height, width))
        tokens = torch.cat([first.expand(count, -1, -1), x.flatten(1, 2)], dim=1)
        return cast("Tensor", self.pos_drop(tokens + table))


def _check_films(x: Tensor, channels: int) -> None:
    if x.ndim != 4 or x.shape[1] != channels or x.shape[2] % PATCH or x.shape[3] % PATCH:
        raise InputContractError(
            f"the network got a tensor of shape {tuple(x.shape)}; films (N, {channels}, H, W) are expected, H and W "
            f"multiples of {PATCH}. load_transform makes such of an image; else resize or crop it"
        )


def resample_positions(table: Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Return a table of positions for another number of patches, as DINOv2 has it: bicubic, without antialiasing.

    The kernel's steps are by the factors (n + 0.1) / grid, not by the sizes.

    Args:
        table: `(1, 1 + patches, width)`, CLS first, patches row by row.
        grid: Patches along each side that it is for.
        wanted: Patches along each side. Where they are those of the grid, the table itself is returned.

    Raises:
        InputContractError: They are open, as in a graph that is exported for any of them: torch keeps the factors of an
            interpolation as constants, which are those of the example.
    """
    check_fixed(wanted, "DINOv2's factors depend on them")
    if tuple(wanted) == tuple(grid):
        return table
    first, maps = table[:, :1], table[:, 1:].reshape(1, *grid, -1).permute(0, 3, 1, 2)
    factors = [(after + _OFFSET) / before for after, before in zip(wanted, grid, strict=True)]
    resampled = F.interpolate(maps.float(), scale_factor=factors, mode="bicubic").to(table.dtype)
    return torch.cat([first, resampled.flatten(2).transpose(1, 2)], dim=1)


def vit_b14(in_channels: int = 3, num_classes: int = 0) -> RadDinoViT:
    """Return the network, with a description of its input that timm's tools read.

    Args:
        in_channels: Channels of the films.
        num_classes: Outputs of the classifier on the CLS token, 0 for none.
    """
    side = PATCH * SIDE
    description: dict[str, Any] = {
        "architecture": _VARIANT,
        "num_classes": num_classes,
        "input_size": (in_channels, side, side),
        "mean": (PREPROCESSING.mean or (0.0,))[:1] * in_channels,
        "std": (PREPROCESSING.std or (1.0,))[:1] * in_channels,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    network: RadDinoViT = build_model_with_cfg(
        RadDinoViT,
        _VARIANT,
        False,
        pretrained_cfg=description,
        img_size=side,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=DEPTH,
        num_heads=12,
        init_values=1e-5,
        in_chans=in_channels,
        num_classes=num_classes,
        dynamic_img_size=True,
    )
    return network

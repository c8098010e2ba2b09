"""The networks of VoCo: those of MONAI that all Swin UNETRs of the zoo are built from."""

from zoo.networks.swin_encoder import swin_encoder
from zoo.networks.swin_unetr import swin_unetr

__all__ = ["swin_encoder", "swin_unetr"]

"""What several tests of attention need: the released numbers, all layouts, random parameters."""

from pathlib import Path

import torch

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("dam_*.npz"))

LAYOUTS = [
    "b c t h w",
    "b t c h w",
    "b t h w c",
    "t b c h w",
    "(b t) c h w",
    "(b t) h w c",
    "(b t) (h w) c",
    "(h w) (b t) c",
    "b (t h w) c",
    "b (h w t) c",
    "c (t b) w h",
]


def randomised(module):
    """Random parameters, so that no term is multiplied by zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + 0.1)
    return module

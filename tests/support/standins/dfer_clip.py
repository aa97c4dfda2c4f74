"""DFER-CLIP: CLIP's image encoder on frames, held twice, then cosines with embeddings of texts."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.support.standins.clip.model import CLIP
from tests.support.standins.former_dfer import encoder


class GenerateModel(nn.Module):
    """(batch, frames, 3, height, width) to logits."""

    def __init__(self):
        super().__init__()
        clip = CLIP()
        self.image_encoder = clip.visual
        self.temporal_net = encoder(24, 2)
        self.texts = nn.Parameter(torch.randn(7, 24))
        self.clip_model_ = clip

    def forward(self, image):
        x = self.image_encoder(image.flatten(0, 1)).unflatten(0, image.shape[:2])
        return F.normalize(self.temporal_net(x).mean(1), dim=-1) @ F.normalize(self.texts).T / 0.01

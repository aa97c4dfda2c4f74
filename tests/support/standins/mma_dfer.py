"""MMA-DFER: an image encoder with trailing prompts, block by block beside one of sound."""

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tests.support.standins.former_dfer import encoder

PROMPTS = 6


class VisionTransformer2(VisionTransformer):
    """timm's, with prompts behind the patches and blocks called from outside."""

    def __init__(self, img_size, width, depth):
        super().__init__(img_size, 16, embed_dim=width, depth=depth, num_heads=2, num_classes=0)
        self.n_seq = (img_size // 16) ** 2
        self.learnable_prompts_init = nn.Parameter(torch.randn(PROMPTS, width))
        self.temporal_pre = nn.ModuleList(nn.Linear(width, 8) for _ in range(depth))
        self.temporal_att_post = nn.ModuleList(nn.Linear(8, width) for _ in range(depth))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + self.n_seq + PROMPTS, width))

    def forward_block_pre(self, i, x):
        if i == 0:
            x = self.patch_embed(x)
            prompts = self.learnable_prompts_init.expand(len(x), -1, -1)
            x = torch.cat((self.cls_token.expand(len(x), -1, -1), x, prompts), 1) + self.pos_embed
        return self.blocks[i](x)

    def forward_block_post(self, i, x, fused):
        return x + self.temporal_att_post[i](fused)


class GenerateModel(nn.Module):
    """(batch, 16, 3, height, width) and sound (batch, tokens, 8) to logits."""

    def __init__(self, img_size=64, width=32, depth=6):
        super().__init__()
        self.image_encoder = VisionTransformer2(img_size, width, depth)
        self.audio_model = nn.ModuleList(encoder(8, 2) for _ in range(depth))
        self.temporal_net, self.our_classifier = encoder(width, 2), nn.Linear(width, 7)

    def forward(self, image, audio):
        clips, frames = image.shape[:2]
        x = image.flatten(0, 1)
        for i, block in enumerate(self.audio_model):
            audio = block(audio)
            x = self.image_encoder.forward_block_pre(i, x)
            low = self.image_encoder.temporal_pre[i](x)
            sound = audio.mean(1, keepdim=True).repeat_interleave(frames, 0)
            audio = audio + low.mean(1).unflatten(0, (clips, frames)).mean(1, keepdim=True)
            x = self.image_encoder.forward_block_post(i, x, low + sound)
        x = self.image_encoder.norm(x)[:, 0].unflatten(0, (clips, frames))
        return self.our_classifier(self.temporal_net(x).mean(1))

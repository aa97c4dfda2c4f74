"""S2D: a transformer of frames with a prompt from landmark features in front of every block."""

import torch
from einops import rearrange
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import nn


class VisionTransformer(nn.Module):
    """(batch, 3, frames, height, width) and landmark features to (logits, features)."""

    def __init__(self, img_size=64, num_frames=16, embed_dim=32, depth=6, global_pool="token"):
        super().__init__()
        self.num_frames, self.embed_dim, self.global_pool = num_frames, embed_dim, global_pool
        self.num_prefix_tokens = 1
        self.patch_embed = PatchEmbed(img_size, 16, 3, embed_dim)
        self.patch_embed_prompt = nn.Conv2d(128, embed_dim, 1)
        self.cls_token = nn.Parameter(torch.randn(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.randn(1, self.patch_embed.num_patches + 1, embed_dim))
        self.prompt_blocks = nn.Sequential(
            *(nn.Linear(2 * embed_dim, embed_dim) for _ in range(depth))
        )
        self.blocks = nn.Sequential(*(Block(embed_dim, 2, qkv_bias=True) for _ in range(depth)))
        self.ln_post = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, 7)

    def forward(self, x, a):
        clips, frames = x.shape[0], x.shape[2]
        x = self.patch_embed(rearrange(x, "b c t h w -> (b t) c h w"))
        a = self.patch_embed_prompt(a).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1) + self.pos_embed
        for i, prompt in enumerate(self.prompt_blocks):
            a = prompt(torch.cat((x[:, 1:], a), 2))
            x = self.blocks[i](torch.cat((x[:, :1], x[:, 1:] + a), 1))
        x = self.ln_post(x)
        x = x[:, 1:].mean(1) if self.global_pool == "avg" else x[:, 0]
        x = x.unflatten(0, (clips, frames)).mean(1)
        return self.head(x), x

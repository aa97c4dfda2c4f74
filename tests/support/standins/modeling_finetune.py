"""MAE-DFER (regions, each behind a messenger token) and VideoMAE (plain tokens)."""

import torch
from einops import rearrange
from torch import nn

from tests.support.standins.former_dfer import encoder


class PatchEmbed(nn.Module):
    """Tubelets of 2 frames and 16×16 pixels to tokens."""

    def __init__(self, img_size, patch_size, embed_dim, tubelet_size):
        super().__init__()
        self.img_size, self.patch_size = (img_size, img_size), (patch_size, patch_size)
        self.tubelet_size = tubelet_size
        kernel = (tubelet_size, patch_size, patch_size)
        self.proj = nn.Conv3d(3, embed_dim, kernel, kernel)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class LGBlock(nn.Module):
    """Within regions, then among messengers, written in place as the original does."""

    def __init__(self, width):
        super().__init__()
        self.first_attn, self.second_attn = encoder(width, 2), encoder(width, 2)

    def forward(self, x, b):
        x = x + self.first_attn(x)
        messengers = rearrange(x[:, 0].clone(), "(b n) c -> b n c", b=b)
        x[:, 0] = rearrange(self.second_attn(messengers), "b n c -> (b n) c")
        return x


class VisionTransformer(nn.Module):
    """(batch, 3, frames, height, width) to logits; ``attn_type`` as in the original."""

    def __init__(
        self,
        img_size=64,
        patch_size=16,
        embed_dim=32,
        depth=4,
        all_frames=16,
        attn_type="local_global",
        lg_region_size=(2, 2, 4),
        lg_classify_token_type="org",
    ):
        super().__init__()
        self.embed_dim, self.attn_type = embed_dim, attn_type
        self.patch_embed = PatchEmbed(img_size, patch_size, embed_dim, 2)
        side = img_size // patch_size
        tokens = all_frames // 2 * side**2
        self.pos_embed = torch.randn(1, tokens, embed_dim) / 8
        if attn_type == "local_global":
            self.blocks = nn.ModuleList(LGBlock(embed_dim) for _ in range(depth))
            self.lg_region_size = lg_region_size
            self.lg_num_region_size = [
                n // m for n, m in zip((all_frames // 2, side, side), lg_region_size, strict=True)
            ]
            regions = torch.tensor(self.lg_num_region_size).prod()
            self.lg_region_tokens = nn.Parameter(torch.randn(regions, embed_dim) / 8)
            self.lg_classify_token_type = lg_classify_token_type
        else:
            self.blocks = nn.ModuleList(encoder(embed_dim, 2) for _ in range(depth))
        self.fc_norm, self.head = nn.LayerNorm(embed_dim), nn.Linear(embed_dim, 7)

    def forward(self, x):
        x = self.patch_embed(x) + self.pos_embed.to(x)
        x = self._local_global(x) if self.attn_type == "local_global" else self._joint(x)
        return self.head(self.fc_norm(x.mean(1)))

    def _joint(self, x):
        for block in self.blocks:
            x = block(x)
        return x

    def _local_global(self, x):
        b = x.shape[0]
        sizes = dict(zip(("nt", "nh", "nw"), self.lg_num_region_size, strict=True))
        sizes |= dict(zip("thw", self.lg_region_size, strict=True))
        x = rearrange(x, "b (nt t nh h nw w) c -> b (nt nh nw) (t h w) c", **sizes)
        messengers = self.lg_region_tokens[None, :, None].expand(b, -1, -1, -1)
        x = torch.cat([messengers, x], 2).flatten(0, 1)
        for block in self.blocks:
            x = block(x, b)
        x = x.unflatten(0, (b, -1))
        return x[:, :, 0] if self.lg_classify_token_type == "region" else x[:, :, 1:].flatten(1, 2)

"""OpenAI's CLIP image encoder: blocks over (sequence, batch, channels), class token first."""

import torch
from torch import nn


class ResidualAttentionBlock(nn.Module):
    """Attention and a perceptron, each behind a normalisation and beside a shortcut."""

    def __init__(self, width, heads):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A Sequential of blocks called ``resblocks``."""

    def __init__(self, width, layers, heads):
        super().__init__()
        self.resblocks = nn.Sequential(
            *(ResidualAttentionBlock(width, heads) for _ in range(layers))
        )

    def forward(self, x):
        return self.resblocks(x)


class VisionTransformer(nn.Module):
    """Images to embeddings read from the class token."""

    def __init__(self, size=64, patch=16, width=32, layers=6, heads=2, outputs=24):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        tokens = (size // patch) ** 2 + 1
        self.positional_embedding = nn.Parameter(torch.randn(tokens, width) / 8)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads)
        self.proj = nn.Parameter(torch.randn(width, outputs) / 8)

    def forward(self, x):
        x = self.conv1(x).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(x.shape[0], 1, -1)
        x = self.ln_pre(torch.cat([first, x], 1) + self.positional_embedding)
        x = self.transformer(x.transpose(0, 1)).transpose(0, 1)
        return self.ln_post(x[:, 0]) @ self.proj


class CLIP(nn.Module):
    """The two encoders; that of texts is only a name here."""

    def __init__(self, **options):
        super().__init__()
        self.visual = VisionTransformer(**options)

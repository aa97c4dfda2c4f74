"""Every Python block of the README runs, one after the other, as a reader would type them."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


class MyNetwork(nn.Module):
    """The reader's own network: a stage that keeps its channels last."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(*(nn.Linear(256, 256) for _ in range(4)))
        self.head = nn.Linear(256, 7)

    def forward(self, x):
        return self.head(self.encoder(x).mean((1, 2, 3)))


@pytest.fixture
def names(device):
    """What the text around the blocks takes for granted."""
    return {
        "my_network": MyNetwork().to(device),
        "logits": torch.randn(8, 7, requires_grad=True, device=device),
        "labels": torch.arange(8, device=device) % 7,
        "sources": torch.arange(8, device=device) % 2,
    }


def test_the_blocks_run(names, device):
    assert len(BLOCKS) >= 3
    for block in BLOCKS:
        with device:  # what the blocks make themselves is there too
            exec(compile(block, str(README), "exec"), names)

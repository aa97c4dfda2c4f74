"""Choosing among the blocks of a model that keeps one resolution, such as a transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import nn

Item = TypeVar("Item")

STAGES = 4  # as many as there are stages in the networks that have some


def evenly_spaced(blocks: Sequence[Item], *, class_token_alone: bool = False) -> list[Item]:
    """Return four of the blocks, the last of each quarter.

    Args:
        blocks: in the order of execution.
        class_token_alone: the classifier reads no other token. What attention does to the patches
            after the last block is then lost, so the block before is taken in its place.

    Example:
        >>> evenly_spaced(range(12))
        [2, 5, 8, 11]
        >>> evenly_spaced(range(12), class_token_alone=True)
        [2, 5, 8, 10]
    """
    count = len(blocks)
    ends = {max(0, -(-count * (i + 1) // STAGES) - 1) for i in range(STAGES)}
    if class_token_alone:
        ends = {min(end, count - 2) for end in ends}
    return [blocks[i] for i in sorted(ends) if i >= 0]


def blocks_named(model: nn.Module, class_name: str) -> list[str]:
    """Return the names of the modules of a class, whose path differs between releases."""
    return [name for name, module in model.named_modules() if type(module).__name__ == class_name]

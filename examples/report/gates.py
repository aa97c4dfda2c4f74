"""What attention does to a clip: the gates of every attached module, caught in a forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hdf_modules import DistributionalAttention


@dataclass
class Gates:
    """Of one module: temporal (batch, time), frequency (batch, height, width), applied factor."""

    name: str
    temporal: Tensor
    frequency: Tensor
    applied: Tensor


@torch.no_grad()
def catch_gates(model: nn.Module, clips: Tensor) -> tuple[Tensor, list[Gates]]:
    """Run ``clips`` through ``model``; returns the logits and the gates, stage by stage."""
    found: list[Gates] = []
    names = {module: name for name, module in model.named_modules()}

    def look(module: nn.Module, args: tuple[Tensor], kwargs: dict[str, object]) -> None:
        if isinstance(module, DistributionalAttention):
            temporal, frequency = module.gates(args[0], **kwargs)  # type: ignore[arg-type]
            applied = module.gate(args[0], **kwargs)  # type: ignore[arg-type]
            found.append(Gates(names[module], temporal.cpu(), frequency.cpu(), applied.cpu()))

    hooks = [
        module.register_forward_pre_hook(look, with_kwargs=True)
        for module in names
        if isinstance(module, DistributionalAttention)
    ]
    training = model.training
    try:
        logits, _ = model.eval()(clips)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return logits.cpu(), found

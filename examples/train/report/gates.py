"""What attention does to a clip: the gates of every attached module, caught in a forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hdf_modules import DistributionalAttention
from hdf_modules.attention.frequency import local_spectrum


@dataclass
class Gates:
    """What one module did to its clips.

    Args:
        name: of the module.
        temporal: g, (batch, time).
        frequency: f, (batch, height, width).
        applied: the factor, (batch, time, height, width).
        energy: mean square of every local frequency over the positions, (batch, n, n); rows are
            frequencies along the width, columns along the height.
    """

    name: str
    temporal: Tensor
    frequency: Tensor
    applied: Tensor
    energy: Tensor


@torch.no_grad()
def catch_gates(model: nn.Module, clips: Tensor) -> tuple[Tensor, list[Gates]]:
    """Run ``clips`` through ``model``; returns the logits and the gates, stage by stage."""
    found: dict[str, Gates] = {}  # of the last call, should a forward begin with a trial
    names = {module: name for name, module in model.named_modules()}

    def look(module: nn.Module, args: tuple[Tensor], kwargs: dict[str, object]) -> None:
        if isinstance(module, DistributionalAttention):
            temporal, frequency = module.gates(args[0], **kwargs)  # type: ignore[arg-type]
            applied = module.gate(args[0], **kwargs)  # type: ignore[arg-type]
            energy = dct_energy(module, args[0], **kwargs)  # type: ignore[arg-type]
            parts = (part.float().cpu() for part in (temporal, frequency, applied, energy))
            found[names[module]] = Gates(names[module], *parts)

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
    return logits.cpu(), list(found.values())


def dct_energy(
    module: DistributionalAttention,
    x: Tensor,
    frames: int | None = None,
    grid: tuple[int, int] | None = None,
) -> Tensor:
    """Energy of the local spectrum that the module's frequency branch reads, (batch, n, n)."""
    clip = module.layout.bind(x, frames or module.num_frames, grid).clip_view(x)
    size = module.options.dct_size
    spectrum = local_spectrum(clip.float().mean(1).sum(1), size)
    return spectrum.square().mean((-2, -1)).unflatten(1, (size, size))

"""What attention does: the gates of every attached module, on a clip and all along a video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from examples.train.data.clips import Frames, sample_frames, to_tensor
from examples.train.progress import track
from hdf_modules import DistributionalAttention
from hdf_modules.attention.functional import local_spectrum

Array = NDArray[Any]


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
    num_frames: int | None = None,
    grid: tuple[int, int] | None = None,
) -> Tensor:
    """Energy of the local spectrum that the module's frequency branch reads, (batch, n, n)."""
    clip = module.layout.bind(x, num_frames or module.num_frames, grid).clip_view(x)
    size = module.options.dct_size
    spectrum = local_spectrum(clip.float().mean(1).sum(1), size)
    return spectrum.square().mean((-2, -1)).unflatten(1, (size, size))


@dataclass(frozen=True)
class Watched:
    """What was seen, of P windows in a video of F frames and S stages.

    Args:
        centres: frame in the middle of each window, (P,).
        probabilities: of the classes, (P, classes).
        frequency: per stage, f of each window, (P, height, width).
        energy: per stage, DCT energy of each window, (P, n, n).
        temporal: g of every frame, averaged over the windows that see it, less what it is at that
            place of a window on average over windows, (S, F).
    """

    centres: NDArray[np.int64]
    probabilities: Array
    frequency: list[Array]
    energy: list[Array]
    temporal: Array


def watch(model: nn.Module, frames: Frames, num_frames: int, span: int, windows: int) -> Watched:
    """Slide a window over a video; it runs past the ends, where the edge frame is repeated.

    Args:
        model: gives (logits, features), with attention attached.
        frames: of the video, at the size the model takes, (F, height, width, 3).
        num_frames: that the model looks at in a window.
        span: length of a window in frames of the video.
        windows: how many, evenly spaced.
    """
    span = min(span, len(frames))
    centres = np.unique(np.linspace(0, len(frames) - 1, windows).round().astype(int))
    around = sample_frames(span, num_frames) - span // 2
    device = next(model.parameters()).device
    seen = []
    for centre in track(centres, "looking at the video", len(centres)):
        inside = np.clip(centre + around, 0, len(frames) - 1)
        clip = to_tensor(frames[inside])[None].to(device)
        logits, gates = catch_gates(model, clip)
        seen.append((logits[0].float().softmax(0).numpy(), gates))
    stages = range(len(seen[0][1]))
    return Watched(
        centres,
        np.stack([probabilities for probabilities, _ in seen]),
        [np.stack([gates[s].frequency[0].numpy() for _, gates in seen]) for s in stages],
        [np.stack([gates[s].energy[0].numpy() for _, gates in seen]) for s in stages],
        np.stack(
            [
                _by_frame([g[s] for _, g in seen], centres - span // 2, span, len(frames))
                for s in stages
            ]
        ),
    )


def _by_frame(gates: list[Gates], starts: Array, span: int, total: int) -> Array:
    curves = torch.cat([gate.temporal for gate in gates])
    # weights over the places of a window give each place a level of its own, whatever it shows
    curves = curves - curves.mean(0 if len(curves) > 1 else 1, keepdim=True)
    curves = interpolate(curves[:, None], span, mode="linear")[:, 0]
    value, count = np.zeros(total), np.zeros(total)
    for start, curve in zip(starts, curves.numpy(), strict=True):
        first, last = max(0, start), min(total, start + span)
        value[first:last] += curve[first - start : last - start]
        count[first:last] += 1
    return value / np.maximum(count, 1)

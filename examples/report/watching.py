"""A model watched while it looks at a video: what it predicts and gates, window by window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from data.clips import to_tensor
from data.sampling import sample_frames
from data.styles import Frames
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import interpolate

from report.gates import Gates, catch_gates

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Watched:
    """What was seen, of P windows in a video of F frames and S stages.

    Args:
        centres: frame in the middle of each window, (P,).
        probabilities: of the classes, (P, classes).
        frequency: per stage, f of each window, (P, height, width).
        energy: per stage, DCT energy of each window, (P, n, n).
        temporal: g of every frame about its window's mean, (S, F); NaN where no window looked.
    """

    centres: NDArray[np.int64]
    probabilities: Array
    frequency: list[Array]
    energy: list[Array]
    temporal: Array


def watch(model: nn.Module, frames: Frames, num_frames: int, span: int, windows: int) -> Watched:
    """Slide a window over a video.

    Args:
        model: gives (logits, features), with attention attached.
        frames: of the video, at the size the model takes, (F, height, width, 3).
        num_frames: that the model looks at in a window.
        span: length of a window in frames of the video.
        windows: how many, evenly spaced.
    """
    span = min(span, len(frames))
    starts = np.unique(np.linspace(0, len(frames) - span, windows).round().astype(int))
    inside = sample_frames(span, num_frames)
    device = next(model.parameters()).device
    seen = []
    for start in starts:
        clip = to_tensor(frames[start + inside])[None].to(device)
        logits, gates = catch_gates(model, clip)
        seen.append((logits[0].float().softmax(0).numpy(), gates))
    stages = range(len(seen[0][1]))
    return Watched(
        starts + span // 2,
        np.stack([probabilities for probabilities, _ in seen]),
        [np.stack([gates[s].frequency[0].numpy() for _, gates in seen]) for s in stages],
        [np.stack([gates[s].energy[0].numpy() for _, gates in seen]) for s in stages],
        np.stack([_by_frame([g[s] for _, g in seen], starts, span, len(frames)) for s in stages]),
    )


def _by_frame(gates: list[Gates], starts: Array, span: int, total: int) -> Array:
    """Temporal gates of overlapping windows, averaged over the windows that see a frame."""
    value, count = np.zeros(total), np.zeros(total)
    for start, gate in zip(starts, gates, strict=True):
        curve = gate.temporal[:1] - gate.temporal.mean()
        stretched = interpolate(curve[None], span, mode="linear")[0, 0].numpy()
        value[start : start + span] += stretched
        count[start : start + span] += 1
    return np.where(count > 0, value / np.maximum(count, 1), np.nan)

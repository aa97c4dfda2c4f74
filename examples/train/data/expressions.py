"""Seven expressions as FACS action units that rise, hold and fall over a clip.

The combinations follow EMFACS (Friesen & Ekman, 1983); the class order is DFEW's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Units = dict[int, float]

CLASSES = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")

# Share of each class among DFEW's single-labelled clips: disgust is one clip in eighty.
DFEW_MIX = (0.206, 0.164, 0.225, 0.186, 0.124, 0.012, 0.083)

# Lips part (25) wherever the muscles named by EMFACS would show teeth in a natural expression.
EMFACS: dict[str, Units] = {
    "happy": {6: 1.0, 12: 1.0, 25: 0.8},
    "sad": {1: 1.0, 4: 0.7, 15: 1.0},
    "neutral": {},
    "angry": {4: 1.0, 5: 0.7, 7: 0.7, 23: 1.0},
    "surprise": {1: 1.0, 2: 1.0, 5: 1.0, 26: 1.0},
    "disgust": {9: 1.0, 15: 0.7, 16: 1.0},
    "fear": {1: 1.0, 2: 0.6, 4: 0.8, 5: 1.0, 7: 0.5, 20: 1.0, 26: 0.45},
}


def envelope(time: Array, onset: float, apex: float, offset: float, end: float) -> Array:
    """Rise from ``onset`` to ``apex``, hold until ``offset``, fall until ``end``; all in clip time.

    Example:
        >>> envelope(np.array([0.0, 0.2, 0.5, 1.0]), 0.1, 0.3, 0.7, 0.9).round(2).tolist()
        [0.0, 0.5, 1.0, 0.0]
    """
    rise = np.clip((time - onset) / (apex - onset), 0, 1)
    fall = np.clip((end - time) / (end - offset), 0, 1)
    return _ease(rise) * _ease(fall)


def _ease(x: Array) -> Array:
    return 0.5 - 0.5 * np.cos(np.pi * x)


def intensities(label: int, frames: int, rng: np.random.Generator) -> list[Units]:
    """Draw the action units of one clip, frame by frame.

    One clip in seven is weak (a third to a half of full intensity), one in eight blends in another
    expression at a third of its strength, and many carry speech or a blink, which belong to no
    expression: these are the hard samples.

    Args:
        label: index into :data:`CLASSES`.
        frames: number of frames.
        rng: the clip's own generator.
    """
    time = np.linspace(0, 1, frames)
    curves: dict[int, Array] = {}
    strength = rng.uniform(0.3, 0.5) if rng.random() < 0.15 else rng.uniform(0.75, 1.1)
    _add(curves, EMFACS[CLASSES[label]], strength, time, rng)
    if rng.random() < 1 / 8:
        other = CLASSES[rng.integers(len(CLASSES))]
        _add(curves, EMFACS[other], strength / 3, time, rng)
    _distract(curves, time, rng)
    return [
        {unit: float(min(curve[t], 1)) for unit, curve in curves.items()} for t in range(frames)
    ]


def _add(
    curves: dict[int, Array], units: Units, strength: float, time: Array, rng: np.random.Generator
) -> None:
    """Add one expression; its muscles start a little apart, as they do in a face."""
    onset = rng.uniform(-0.3, 0.25)
    apex = onset + rng.uniform(0.15, 0.35)
    offset = apex + rng.uniform(0.3, 0.7)
    end = offset + rng.uniform(0.15, 0.4)
    for unit, share in units.items():
        late = rng.uniform(-0.05, 0.05)
        curve = envelope(time, onset + late, apex + late, offset + late, end + late)
        gain = strength * share * rng.uniform(0.85, 1.1)
        curves[unit] = np.maximum(curves.get(unit, 0), gain * curve)


def _distract(curves: dict[int, Array], time: Array, rng: np.random.Generator) -> None:
    """Speech moves the jaw (25, 26) and a blink closes the lids (45) in any expression."""
    if rng.random() < 0.25:
        speech = 0.25 * rng.random() * np.abs(np.sin(time * rng.uniform(8, 20) + rng.uniform(0, 6)))
        for unit in (25, 26):
            curves[unit] = np.maximum(curves.get(unit, 0), speech)
    if rng.random() < 0.4:
        curves[45] = np.exp(-(((time - rng.random()) / 0.04) ** 2))

"""Ten corruptions at five severities that no training clip has seen.

Each takes the frames of a clip, (time, height, width, 3) in 0..255, a severity from 1 to 5 and the
clip's own generator. Lengths are relative to the frame, so that severities mean the same at any
size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from examples.train.data.clips import Frames
from examples.train.data.styles import compress

Corruption = Callable[[Frames, int, Generator], Frames]
SEVERITIES = (1, 2, 3, 4, 5)


def drop(frames: Frames, severity: int, rng: Generator) -> Frames:
    """A lost frame shows the one before."""
    lost = rng.random(len(frames)) < (0.15, 0.3, 0.45, 0.6, 0.75)[severity - 1]
    return frames[np.maximum.accumulate(np.arange(len(frames)) * ~lost)]


def shuffle(frames: Frames, severity: int, rng: Generator) -> Frames:
    """Frames change places within short windows."""
    window = (2, 3, 4, 6, 8)[severity - 1]
    starts = range(0, len(frames), window)
    order = [start + rng.permutation(min(window, len(frames) - start)) for start in starts]
    return frames[np.concatenate(order)]


def speed(frames: Frames, severity: int, rng: Generator) -> Frames:
    """Slow motion: a part of the clip is stretched to its whole length."""
    part = len(frames) / (1.25, 1.6, 2.0, 3.0, 4.0)[severity - 1]
    start = rng.uniform(0, len(frames) - part)
    return frames[np.floor(start + np.arange(len(frames)) * part / len(frames)).astype(int)]


def blur(frames: Frames, severity: int, rng: Generator) -> Frames:
    """Gaussian blur."""
    radius = (0.012, 0.02, 0.03, 0.042, 0.056)[severity - 1] * frames.shape[2]
    images = [Image.fromarray(frame).filter(ImageFilter.GaussianBlur(radius)) for frame in frames]
    return np.stack([np.asarray(image) for image in images])


def noise(frames: Frames, severity: int, rng: Generator) -> Frames:
    """Independent Gaussian noise in every value."""
    level = (12, 20, 30, 42, 56)[severity - 1]
    return _pixels(frames + level * rng.standard_normal(frames.shape, np.float32))


def compression(frames: Frames, severity: int, rng: Generator) -> Frames:
    """JPEG at low quality."""
    return compress(frames, (30, 20, 12, 7, 3)[severity - 1])


def gamma(frames: Frames, severity: int, rng: Generator) -> Frames:
    """Brighter or darker by a power."""
    power = (1.3, 1.6, 2.0, 2.5, 3.2)[severity - 1] ** rng.choice((-1.0, 1.0))
    return _pixels(255 * (frames / np.float32(255)) ** power)


def contrast(frames: Frames, severity: int, rng: Generator) -> Frames:
    """Everything moves towards the clip's mean."""
    share, mean = (0.7, 0.55, 0.4, 0.28, 0.18)[severity - 1], frames.mean()
    return _pixels(mean + np.float32(share) * (frames - mean))


def cast(frames: Frames, severity: int, rng: Generator) -> Frames:
    """One colour channel is weakened and another one strengthened."""
    amount = (0.12, 0.22, 0.34, 0.48, 0.64)[severity - 1]
    factors = rng.permutation(np.array([1 - amount, 1.0, 1 + amount], np.float32))
    return _pixels(frames * factors)


def occlusion(frames: Frames, severity: int, rng: Generator) -> Frames:
    """A grey square hides the same part of every frame."""
    size = frames.shape[1]
    side = round((0.18, 0.26, 0.34, 0.42, 0.5)[severity - 1] * size)
    top, left = rng.integers(size // 8, size - size // 8 - side + 1, 2)
    out = frames.copy()
    out[:, top : top + side, left : left + side] = rng.integers(64, 192)
    return out


CORRUPTIONS: dict[str, Corruption] = {
    "frame drops": drop,
    "frame shuffles": shuffle,
    "speed": speed,
    "blur": blur,
    "noise": noise,
    "compression": compression,
    "gamma": gamma,
    "contrast": contrast,
    "colour cast": cast,
    "occlusion": occlusion,
}


def _pixels(values: NDArray[np.floating]) -> Frames:
    return (np.clip(values, 0, 255) + 0.5).astype(np.uint8)

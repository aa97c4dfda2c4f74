"""How a source films: light, colour, blur, noise, compression, dropped frames, motion, occlusion.

A source is a dataset's heterogeneity in one word: a film, a webcam, a phone. Each clip draws its
own amounts around the source's.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from examples.train.data.clips import Frames
from examples.train.data.face import OCCLUSIONS, Colour, Pose


@dataclass(frozen=True)
class Style:
    """Typical amounts of one source.

    Args:
        name: of the source.
        background: RGB behind the head.
        light: direction the light comes from (x, y) and its contrast across the image.
        gain, gamma: exposure.
        tint: factor per colour channel; equal channels after ``grey`` mixing.
        grey: share of desaturation.
        blur: Gaussian radius, in sixtieths of the image side.
        noise: standard deviation, grey levels of 255.
        quality: JPEG quality; 100 leaves the frames alone.
        drop: probability that a frame repeats the one before.
        motion: amplitude of the head's movement, in image widths.
        zoom: scale of the head.
        occlusion: probability that something covers part of the face.
    """

    name: str
    background: Colour = (128, 134, 142)
    light: tuple[float, float, float] = (0.0, -1.0, 0.1)
    gain: float = 1.0
    gamma: float = 1.0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    grey: float = 0.0
    blur: float = 0.0
    noise: float = 2.0
    quality: int = 95
    drop: float = 0.0
    motion: float = 0.008
    zoom: float = 1.0
    occlusion: float = 0.05


SOURCES = (
    Style("studio", (196, 200, 204), noise=2),
    Style(
        "film",
        (70, 58, 52),
        light=(-1.0, -0.3, 0.45),
        gain=0.85,
        gamma=1.15,
        tint=(1.12, 1.0, 0.82),
        noise=5,
        motion=0.02,
        zoom=1.08,
    ),
    Style(
        "webcam",
        (106, 112, 128),
        light=(0.3, -1.0, 0.2),
        gain=0.95,
        tint=(0.92, 1.0, 1.1),
        blur=0.7,
        noise=7,
        quality=35,
        drop=0.15,
        zoom=0.92,
        occlusion=0.12,
    ),
    Style(
        "phone",
        (150, 138, 120),
        light=(1.0, 0.2, 0.3),
        gain=1.12,
        gamma=0.9,
        blur=0.5,
        noise=6,
        quality=55,
        motion=0.03,
        drop=0.1,
        occlusion=0.1,
    ),
    Style(
        "archive",
        (120, 120, 120),
        light=(-0.5, -1.0, 0.25),
        gamma=1.2,
        tint=(1.05, 1.0, 0.9),
        grey=0.95,
        blur=0.9,
        noise=14,
        motion=0.012,
    ),
    Style(
        "stage",
        (30, 24, 44),
        light=(0.6, -0.9, 0.6),
        gain=1.2,
        gamma=1.3,
        tint=(1.15, 0.88, 1.08),
        noise=7,
        quality=60,
        motion=0.025,
        occlusion=0.2,
    ),
    Style(
        "night",
        (24, 28, 30),
        light=(-0.2, -1.0, 0.3),
        gain=0.75,
        gamma=1.25,
        tint=(0.85, 1.08, 0.9),
        blur=0.6,
        noise=18,
        quality=70,
        motion=0.03,
        occlusion=0.15,
    ),
    Style(
        "television",
        (92, 96, 140),
        light=(0.8, -0.5, 0.2),
        gain=1.15,
        gamma=0.85,
        tint=(1.0, 0.9, 1.15),
        blur=1.0,
        noise=4,
        quality=25,
        drop=0.05,
        zoom=1.12,
        occlusion=0.1,
    ),
)


def sample_poses(style: Style, frames: int, rng: np.random.Generator) -> list[Pose]:
    """Draw the path of the head: a slow sway of two frequencies about a resting pose."""
    time = np.linspace(0, 2 * np.pi, frames)

    def sway(amplitude: float) -> NDArray[np.float64]:
        slow, fast = rng.uniform(0.4, 1.0), rng.uniform(1.0, 2.5)
        path = np.sin(slow * time + rng.uniform(0, 6.3)) + 0.4 * np.sin(
            fast * time + rng.uniform(0, 6.3)
        )
        return amplitude * path + rng.normal(0, amplitude)

    m = style.motion
    x, y, roll, turn = sway(m), sway(m), sway(3 * m), sway(2.5 * m)
    scale = style.zoom * rng.uniform(0.95, 1.05) * (1 + sway(m))
    return [Pose(*map(float, at)) for at in zip(x, y, roll, turn, scale, strict=True)]


def sample_occlusion(style: Style, rng: np.random.Generator) -> str | None:
    """Draw what covers the face, if anything does."""
    return OCCLUSIONS[rng.integers(len(OCCLUSIONS))] if rng.random() < style.occlusion else None


def film(images: list[Image.Image], style: Style, rng: np.random.Generator) -> Frames:
    """Film drawn frames in a style; returns (time, height, width, 3) in 0..255."""
    if style.blur:
        radius = style.blur * images[0].width / 60 * rng.uniform(0.7, 1.3)
        images = [image.filter(ImageFilter.GaussianBlur(radius)) for image in images]
    clip = np.stack([np.asarray(image) for image in images]).astype(np.float32) / 255
    clip = _light(clip, style, rng)
    clip += rng.standard_normal(clip.shape, np.float32) * (
        style.noise / 255 * rng.uniform(0.7, 1.3)
    )
    pixels = (np.clip(clip, 0, 1) * 255 + 0.5).astype(np.uint8)
    return _drop(compress(pixels, style.quality), style.drop, rng)


def _light(clip: NDArray[Any], style: Style, rng: np.random.Generator) -> NDArray[Any]:
    side = np.linspace(-1, 1, clip.shape[1], dtype=np.float32)
    x, y, contrast = style.light
    angle = np.arctan2(y, x) + rng.normal(0, 0.2)
    ramp = np.cos(angle) * side[None, :] + np.sin(angle) * side[:, None]
    shade = (style.gain * rng.uniform(0.92, 1.08) * (1 + contrast * ramp)).astype(np.float32)
    grey = clip.mean(-1, keepdims=True)
    clip = clip + style.grey * (grey - clip)
    clip = clip * shade[None, :, :, None] * np.asarray(style.tint, np.float32)
    return np.clip(clip, 0, 1) ** np.float32(style.gamma * rng.uniform(0.93, 1.07))


def compress(clip: Frames, quality: int) -> Frames:
    """Encode and decode as JPEG, the frames stacked into one tall image."""
    if quality >= 100:
        return clip
    buffer = io.BytesIO()
    Image.fromarray(clip.reshape(-1, *clip.shape[2:])).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer)).reshape(clip.shape)


def _drop(clip: Frames, probability: float, rng: np.random.Generator) -> Frames:
    kept = np.arange(len(clip)) * (rng.random(len(clip)) >= probability)
    return clip[np.maximum.accumulate(kept)]

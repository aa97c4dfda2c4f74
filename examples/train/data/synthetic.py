"""Drawn face clips: the built-in data, a function of nothing but a seed and an index.

Expressions come from ``expressions``, people and drawing from ``face``, sources
from ``styles``. Splits share no person. Classes follow DFEW's long-tailed mix.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from examples.train.data.clips import Clip, Frames, Pick, every_frame, parallel_map
from examples.train.data.expressions import CLASSES, DFEW_MIX, intensities
from examples.train.data.face import draw, sample_identity
from examples.train.data.styles import SOURCES, film, sample_occlusion, sample_poses
from hdf_modules import HDFError

SPLITS = ("train", "val", "test")
_PEOPLE = {"train": 120, "val": 30, "test": 60}
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class SyntheticClips:
    """Clips of one split, rendered on demand.

    A clip depends on (seed, split, index) alone, so any prefix of a split is the same in a longer
    one. Labels follow a low-discrepancy sequence: every prefix has the class mix to within a clip
    or two.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``.
        length: number of clips.
        size: side of the frames in pixels.
        sources: which of ``SOURCES``; a clip's group is its place in this tuple.
        mix: share of each class.
        seed: of the whole dataset.

    Raises:
        HDFError: for an unknown split or source, or a length or size below its minimum.

    Example:
        >>> clips = SyntheticClips("train", 4, size=16)
        >>> clips.frames(2).shape[1:]
        (16, 16, 3)
        >>> [CLASSES[clip.label] for clip in clips.clips]
        ['angry', 'sad', 'surprise', 'neutral']
    """

    split: str = "train"
    length: int = 1500
    size: int = 40
    sources: tuple[str, ...] = tuple(style.name for style in SOURCES[:4])
    mix: tuple[float, ...] = DFEW_MIX
    seed: int = 0
    classes: tuple[str, ...] = field(default=CLASSES, init=False)

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise HDFError("split", f"one of {', '.join(SPLITS)}", repr(self.split))
        if self.length < 1 or self.size < 8:
            raise HDFError("length, size", "at least 1 clip of 8 pixels", (self.length, self.size))
        known = [style.name for style in SOURCES]
        unknown = [name for name in self.sources if name not in known]
        if unknown or not self.sources:
            raise HDFError("sources", f"some of {', '.join(known)}", unknown or "none")

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups: the sources."""
        return self.sources

    @property
    def clips(self) -> list[Clip]:
        """Label and group of every clip, without rendering any."""
        return [self._clip(index) for index in range(self.length)]

    def frames(self, index: int, pick: Pick = every_frame) -> Frames:
        """Render clip ``index`` as (time, height, width, 3); 12 to 24 frames before ``pick``."""
        rng = self._rng(index, 1)
        clip = self._clip(index)
        style = next(style for style in SOURCES if style.name == self.sources[clip.group])
        person = int(rng.integers(_PEOPLE[self.split]))
        who = sample_identity(
            np.random.default_rng((self.seed, SPLITS.index(self.split), 7, person))
        )
        units = intensities(clip.label, int(rng.integers(12, 25)), rng)
        occlusion = sample_occlusion(style, rng)
        background = tuple(np.clip(np.array(style.background) * rng.uniform(0.8, 1.2), 0, 255))
        poses = sample_poses(style, len(units), rng)
        images = [
            draw(who, level, size=self.size, pose=pose, background=background, occlusion=occlusion)
            for level, pose in zip(units, poses, strict=True)
        ]
        return film(images, style, rng)[pick(len(images))]

    def render(self, workers: int = 1) -> list[Frames]:
        """Render every clip, on ``workers`` processes."""
        return parallel_map(self.frames, range(self.length), workers)

    def _clip(self, index: int) -> Clip:
        if not 0 <= index < self.length:
            raise HDFError("index", f"0 <= index < {self.length}", index)
        rng = self._rng(index, 0)
        offset = np.random.default_rng((self.seed, SPLITS.index(self.split), 11)).random()
        share = (offset + index * _GOLDEN) % 1.0
        bounds = np.cumsum(self.mix) / np.sum(self.mix)
        label = min(int(np.searchsorted(bounds, share, side="right")), len(self.mix) - 1)
        group = int(rng.integers(len(self.sources)))
        return Clip(f"{self.split}/{index:05d}", label, group)

    def _rng(self, index: int, stream: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, SPLITS.index(self.split), stream, index))

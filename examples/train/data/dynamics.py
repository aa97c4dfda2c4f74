"""Clips of real people whose motion is the class: real photographs, interpolated motion.

The Face Research Lab London Set (``examples/assets/london``) has a neutral and a smiling picture of
102 people. What lies between is interpolated by optical flow and a cross-dissolve, so that a clip
is a smile that comes, goes, or stays: no single frame gives the class away. The four sources are
simulated: different people, each with an acquisition of its own.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from examples.train.data.clips import Clip, Frames, Pick, every_frame, parallel_map
from examples.train.data.face import Pose
from examples.train.data.flow import flow
from examples.train.data.styles import Style, film, sample_poses
from examples.train.progress import bar
from hdf_modules import HDFError

LONDON = Path(__file__).parents[2] / "assets/london"
CLASSES = ("neutral", "smile", "onset", "offset", "flash")
# Shares of a source's people; "all" are all of them, of a source that is left out.
SPLITS = {"train": (0.0, 0.6), "val": (0.6, 0.75), "test": (0.75, 1.0), "all": (0.0, 1.0)}
FRAMES = 16
_LEFT_OUT = ("143",)  # another pose in each picture: no flow joins them
_FLOW_SIDE = 80


@dataclass(frozen=True)
class Acquisition:
    """How a source films: a style, and contrast and frame rate, which styles do not have.

    Args:
        style: light, colour, blur, noise, compression, motion of the head.
        contrast: about the mean.
        hold: how many frames show the same picture; 2 is half the frame rate.
    """

    style: Style
    contrast: float = 1.0
    hold: int = 1


def _style(name: str, **options: Any) -> Style:
    return Style(name, motion=0.01, zoom=1.08, **options)


SOURCES = {
    "plain": Acquisition(_style("plain", noise=2)),
    "tinted": Acquisition(_style("tinted", gain=0.75, tint=(1.2, 1.0, 0.75), noise=12)),
    "soft": Acquisition(_style("soft", blur=0.6, noise=2, quality=30), contrast=0.6),
    "grey": Acquisition(_style("grey", grey=1.0, gamma=1.6, noise=4), hold=2),
}


@dataclass(frozen=True)
class Person:
    """One of the people, as they described themselves."""

    name: str
    age: str
    gender: str
    ethnicity: str


@cache
def people(folder: Path = LONDON) -> tuple[Person, ...]:
    """The people whose two pictures show one pose.

    Raises:
        HDFError: if the folder holds no people, or not both pictures of each.
    """
    if not (folder / "people.csv").is_file():
        hint = "use the photographs of the repository, examples/assets/london"
        raise HDFError("--faces", "a folder with people.csv", f"none in {folder}", hint)
    with (folder / "people.csv").open(newline="", encoding="utf-8") as file:
        rows = [Person(*row) for row in list(csv.reader(file))[1:] if row]
    for person in rows:
        for kind in ("neutral", "smiling"):
            path = folder / f"{person.name}_{kind}.jpg"
            if not path.is_file():
                raise HDFError("--faces", "a neutral and a smiling picture of each", f"no {path}")
    return tuple(person for person in rows if person.name not in _LEFT_OUT)


def sources_of(folder: Path = LONDON, seed: int = 0) -> dict[str, list[Person]]:
    """Who is filmed by which source: everyone by one, in another order for another seed."""
    everyone = people(folder)
    order = np.random.default_rng((seed, 17)).permutation(len(everyone))
    parts = np.array_split(order, len(SOURCES))
    return {name: [everyone[i] for i in part] for name, part in zip(SOURCES, parts, strict=True)}


@dataclass(frozen=True)
class DynamicsClips:
    """Clips of one split, rendered on demand.

    A clip depends on seed, person, class and draw alone. The classes come in turn, and every person
    before one comes again, so any prefix of a split is the same in a longer one.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``, which share no person; ``"all"`` for all people
            of the sources.
        length: number of clips.
        size: side of the frames in pixels.
        sources: which of ``SOURCES``; a clip's group is its place in this tuple.
        seed: of the people in sources and splits, and of the clips.
        folder: of the photographs.

    Example:
        >>> clips = DynamicsClips("test", 3, size=24, sources=("plain", "grey"))
        >>> [clip.name for clip in clips.clips]
        ['plain/082_neutral_0', 'grey/100_smile_0', 'plain/129_onset_0']
        >>> clips.classes
        ('neutral', 'smile', 'onset', 'offset', 'flash')
    """

    split: str = "train"
    length: int = 1200
    size: int = 48
    sources: tuple[str, ...] = tuple(SOURCES)
    seed: int = 0
    folder: Path = LONDON
    classes: tuple[str, ...] = field(default=CLASSES, init=False)

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise HDFError("split", f"one of {', '.join(SPLITS)}", repr(self.split))
        unknown = [name for name in self.sources if name not in SOURCES]
        if unknown or not self.sources:
            raise HDFError("sources", f"some of {', '.join(SOURCES)}", unknown or "none")
        if self.length < 1 or self.size < 8:
            raise HDFError("length, size", "at least 1 clip of 8 pixels", (self.length, self.size))

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups: the sources."""
        return self.sources

    @property
    def clips(self) -> list[Clip]:
        """Name, label and group of every clip, without rendering any."""
        return [
            Clip(f"{self.sources[group]}/{person.name}_{CLASSES[label]}_{draw}", label, group)
            for group, person, label, draw in map(self._clip, range(self.length))
        ]

    def frames(self, index: int, pick: Pick = every_frame) -> Frames:
        """Render clip ``index`` as (time, height, width, 3); 16 frames before ``pick``."""
        group, person, label, draw = self._clip(index)
        rng = np.random.default_rng((self.seed, int(person.name), label, draw))
        source = SOURCES[self.sources[group]]
        levels = intensity(CLASSES[label], rng)
        poses = sample_poses(source.style, FRAMES, rng)
        at = people(self.folder).index(person)
        shown = smile(_pictures(self.folder, self.size), at, levels, poses)
        shown = shown[np.arange(FRAMES) // source.hold * source.hold]
        shown = shown.mean((1, 2), keepdims=True) * (1 - source.contrast) + shown * source.contrast
        pixels = (shown.clip(0, 1) * 255 + 0.5).astype(np.uint8)
        return film([Image.fromarray(frame) for frame in pixels], source.style, rng)[pick(FRAMES)]

    def render(self, _workers: int = 1) -> list[Frames]:
        """Render every clip, in this process: others would have to find the motion again."""
        _pictures(self.folder, self.size)  # with a bar of its own
        return parallel_map(self.frames, range(self.length))

    def _clip(self, index: int) -> tuple[int, Person, int, int]:
        """Group, person, label and draw of a clip."""
        if not 0 <= index < self.length:
            raise HDFError("index", f"0 <= index < {self.length}", index)
        cast = _cast(self.split, self.sources, self.seed, self.folder)
        turn, place = divmod(index, len(cast))
        draw, shift = divmod(turn, len(CLASSES))
        return *cast[place], (place + shift) % len(CLASSES), draw


@cache
def _cast(
    split: str, sources: tuple[str, ...], seed: int, folder: Path
) -> list[tuple[int, Person]]:
    """Everyone in a split, with the source that films them, in the order of the clips."""
    filmed = sources_of(folder, seed)
    cast = [
        (g, person) for g, name in enumerate(sources) for person in part_of(filmed[name], split)
    ]
    return [cast[i] for i in np.random.default_rng((seed, 19)).permutation(len(cast))]


def part_of(filmed: list[Person], split: str) -> list[Person]:
    """The people of a source who are in a split."""
    first, last = (round(share * len(filmed)) for share in SPLITS[split])
    return filmed[first:last]


def intensity(name: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """Share of the smile in every frame: random start, speed and strength.

    Example:
        >>> intensity("flash", np.random.default_rng(0)).round(1)[[0, 5, 15]]
        array([0. , 0.6, 0. ])
    """
    time, strength = np.linspace(0, 1, FRAMES), rng.uniform(0.6, 1.0)
    if name in ("neutral", "smile"):
        return np.full(FRAMES, strength * (name == "smile"))
    latest, slowest = (0.3, 0.25) if name == "flash" else (0.5, 0.4)
    start, takes = rng.uniform(0.05, latest), rng.uniform(0.12, slowest)
    up = _ease((time - start) / takes)
    stays, falls = rng.uniform(0, 0.15), rng.uniform(0.12, 0.25)
    down = _ease((time - start - takes - stays) / falls)
    return strength * {"onset": up, "offset": 1 - up, "flash": up - down}[name]


def _ease(progress: NDArray[np.float64]) -> NDArray[np.float64]:
    progress = progress.clip(0, 1)
    return progress * progress * (3 - 2 * progress)


@dataclass(frozen=True)
class Pictures:
    """Both pictures of everyone, (N, 3, S, S) in 0..1, and the flow from each to the other.

    Flows are (N, 2, S, S), in halves of the side, as ``grid_sample`` counts.
    """

    neutral: Tensor
    smiling: Tensor
    there: Tensor
    back: Tensor


def smile(
    pictures: Pictures, person: int, levels: NDArray[np.float64], poses: list[Pose]
) -> NDArray[np.float32]:
    """Both pictures warped to every level and dissolved, (time, height, width, 3) in 0..1."""
    level = torch.from_numpy(levels).float()[:, None, None, None]
    size, count = pictures.neutral.shape[-1], len(poses)
    grid = F.affine_grid(
        torch.stack([_affine(pose) for pose in poses]), [count, 1, size, size], align_corners=False
    )

    def sample(part: Tensor, at: Tensor) -> Tensor:
        whole = part[person].expand(count, -1, -1, -1)
        return F.grid_sample(whole, at, padding_mode="border", align_corners=False)

    with torch.no_grad():
        there, back = (
            sample(part, grid).permute(0, 2, 3, 1) for part in (pictures.there, pictures.back)
        )
        neutral = sample(pictures.neutral, grid - level * there)
        smiling = sample(pictures.smiling, grid - (1 - level) * back)
        shown = torch.lerp(neutral, smiling, level)
    return shown.permute(0, 2, 3, 1).numpy()


def _affine(pose: Pose) -> Tensor:
    """From where a pixel is shown to where it is in the picture, both in -1..1."""
    cos, sin = np.cos(pose.roll) / pose.scale, np.sin(pose.roll) / pose.scale
    x, y = -2 * pose.x, -2 * pose.y
    return torch.tensor([[cos, sin, cos * x + sin * y], [-sin, cos, cos * y - sin * x]]).float()


@cache
def _pictures(folder: Path, size: int) -> Pictures:
    whole = [_load(folder, kind) for kind in ("neutral", "smiling")]
    there, back = _flows(folder)
    resized = partial(F.interpolate, size=(size, size), mode="bilinear", antialias=True)
    return Pictures(*map(resized, (*whole, there, back)))


@cache
def _flows(folder: Path) -> tuple[Tensor, Tensor]:
    neutral, smiling = (
        F.interpolate(_load(folder, kind), (_FLOW_SIDE,) * 2, mode="area")
        for kind in ("neutral", "smiling")
    )
    scale = 2 / _FLOW_SIDE
    with bar("finding the motion between photographs", 2) as done:
        there, back = (flow(*pair, done) for pair in ((neutral, smiling), (smiling, neutral)))
    return there * scale, back * scale


def _load(folder: Path, kind: str) -> Tensor:
    found = [np.asarray(Image.open(folder / f"{p.name}_{kind}.jpg")) for p in people(folder)]
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255

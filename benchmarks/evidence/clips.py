"""The benchmark's clips: rendered once per source, kept on disk, pooled per fold."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.evidence.corruptions import CORRUPTIONS, SEVERITIES
from benchmarks.evidence.sets import DATA, Chosen
from benchmarks.evidence.settings import Preset
from benchmarks.machine import digest
from examples.train import data
from examples.train.data.clips import Clip, Frames, Pick, every_frame, sample_frames


@dataclass(frozen=True)
class Pool:
    """Clips of several sources, in memory: what :class:`ClipDataset` reads."""

    groups: tuple[str, ...]
    clips: list[Clip]
    kept: list[Frames]
    classes: tuple[str, ...]
    mix: tuple[float, ...]
    cohorts: list[tuple[str, ...]] = field(default_factory=list)

    def frames(self, index: int, pick: Pick = every_frame) -> Frames:
        return self.kept[index][pick(len(self.kept[index]))]


def pool(preset: Preset, store: Path, split: str, sources: Sequence[str], seed: int = 0) -> Pool:
    """Pool the clips of a split; a clip's group is its source.

    Args:
        preset: how many there are, and how large.
        store: folder of the drawn clips.
        split: one of ``train``, ``val``, ``test``; ``unseen`` for more of a source that is not
            trained on, ``corrupted`` for fewer.
        sources: their names.
        seed: of the people in them, where the data set has others for another seed.
    """
    clips: list[Clip] = []
    kept: list[Frames] = []
    for group, name in enumerate(sources):
        made = DATA[preset.data].make(preset, split, name, seed)
        clips += [replace(clip, group=group) for clip in made.clips]
        kept += _frames(preset, store, split, name, seed)
    return _pooled(preset, sources, clips, kept)


def _pooled(preset: Preset, sources: Sequence[str], clips: list[Clip], kept: list[Frames]) -> Pool:
    chosen = DATA[preset.data]
    cohorts = [chosen.cohorts(clip) for clip in clips]
    return Pool(tuple(sources), clips, kept, chosen.classes, chosen.mix, cohorts)


def corrupted(
    preset: Preset,
    store: Path,
    sources: Sequence[str],
    corruption: str,
    severity: int,
    *,
    seed: int = 0,
) -> Pool:
    """Pool corrupted test clips of some sources; severity 0 leaves them as they are."""
    whole = [pool(preset, store, "corrupted", [name], seed) for name in sources]
    clips = [replace(clip, group=g) for g, part in enumerate(whole) for clip in part.clips]
    if severity == 0:
        return _pooled(preset, sources, clips, [f for part in whole for f in part.kept])
    kept: list[Frames] = []
    for name, part in zip(sources, whole, strict=True):
        file = f"{name}-{corruption.replace(' ', '_')}-{severity}"
        kept += list(
            _stored(
                _folder(preset, store, seed)
                / f"corrupted-{preset.corrupted_clips}"
                / f"{file}.npy",
                partial(_corrupt, part, preset.frames, corruption, severity),
            )
        )
    return _pooled(preset, sources, clips, kept)


def variants() -> list[tuple[str, int]]:
    """Every corruption at every severity."""
    return [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]


def prepare(preset: Preset, store: Path, name: str) -> None:
    """Render everything that a source gives."""
    trained = name in DATA[preset.data].names
    for split in (*(("train", "val", "test") if trained else ()), "unseen"):
        pool(preset, store, split, [name])
    if trained and preset.corrupted_clips:
        for corruption, severity in variants():
            corrupted(preset, store, [name], corruption, severity)


def _frames(preset: Preset, store: Path, split: str, name: str, seed: int) -> list[Frames]:
    made = DATA[preset.data].make(preset, split, name, seed)
    folder = _folder(preset, store, seed)
    lengths_file = folder / f"{split}-{made.length}-{name}-lengths.npy"
    rendered: list[Frames] = []

    def render() -> list[Frames]:
        rendered[:] = rendered or made.render()
        return rendered

    lengths = _stored(lengths_file, lambda: np.array([len(clip) for clip in render()]))
    frames = _stored(folder / f"{split}-{made.length}-{name}.npy", lambda: np.concatenate(render()))
    return np.split(frames, np.cumsum(lengths)[:-1])


@cache
def drawing(chosen: Chosen) -> str:
    """Digest of the code that renders: other code renders other clips."""
    return digest(Path(data.__file__).with_name(f"{name}.py") for name in chosen.code)


def _folder(preset: Preset, store: Path, seed: int) -> Path:
    chosen = DATA[preset.data]
    name = f"{preset.data}-{seed}" if chosen.seeded else preset.data
    return store / name / f"{preset.size}-{drawing(chosen)}"


def _corrupt(part: Pool, frames: int, corruption: str, severity: int) -> NDArray[np.uint8]:
    """Corrupt the frames that a model would see of every clip."""
    place = list(CORRUPTIONS).index(corruption)
    change = CORRUPTIONS[corruption]
    return np.stack(
        [
            change(
                clip[sample_frames(len(clip), frames)],
                severity,
                np.random.default_rng((place, severity, index)),
            )
            for index, clip in enumerate(part.kept)
        ]
    )


def _stored(path: Path, make: Callable[[], NDArray[np.generic]]) -> NDArray[np.generic]:
    """What ``make`` returns, from disk after the first time; whole files only."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.stem}.{os.getpid()}.part.npy")
        np.save(part, make())
        part.replace(path)
    return np.load(path)

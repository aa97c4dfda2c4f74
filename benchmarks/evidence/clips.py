"""The benchmark's clips: drawn once per source, kept on disk, pooled per fold."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.evidence.corruptions import CORRUPTIONS, SEVERITIES
from benchmarks.evidence.settings import Preset
from benchmarks.machine import digest
from examples.train import data
from examples.train.data.clips import Clip, Frames, Pick, every_frame, sample_frames
from examples.train.data.expressions import CLASSES
from examples.train.data.styles import SOURCES
from examples.train.data.synthetic import SPLITS, SyntheticClips

_DRAWING = ("expressions", "face", "styles", "synthetic")
UNIFORM = (1 / len(CLASSES),) * len(CLASSES)
NAMES = ("studio", "film", "webcam", "phone", "archive", "stage")
# Nothing is trained or tested on these: hyper-parameters are chosen where no test result is seen.
VALIDATION_NAMES = ("night", "television")


@dataclass(frozen=True)
class Pool:
    """Clips of several sources, in memory: what :class:`ClipDataset` reads."""

    groups: tuple[str, ...]
    clips: list[Clip]
    kept: list[Frames]
    classes: tuple[str, ...] = CLASSES

    def frames(self, index: int, pick: Pick = every_frame) -> Frames:
        return self.kept[index][pick(len(self.kept[index]))]


def pool(preset: Preset, store: Path, split: str, sources: Sequence[str]) -> Pool:
    """Pool the clips of a split; a clip's group is its source.

    Args:
        preset: how many there are, and how large.
        store: folder of the drawn clips.
        split: one of ``train``, ``val``, ``test``; ``unseen`` for more of a source that is not
            trained on, ``corrupted`` for fewer.
        sources: their names.
    """
    clips: list[Clip] = []
    kept: list[Frames] = []
    for group, name in enumerate(sources):
        drawn = _drawn(preset, split, name)
        clips += [replace(clip, group=group) for clip in drawn.clips]
        kept += _frames(preset, store, split, name)
    return Pool(tuple(sources), clips, kept)


def corrupted(
    preset: Preset, store: Path, sources: Sequence[str], corruption: str, severity: int
) -> Pool:
    """Pool corrupted test clips of some sources; severity 0 leaves them as they are."""
    whole = [pool(preset, store, "corrupted", [name]) for name in sources]
    clips = [replace(clip, group=g) for g, part in enumerate(whole) for clip in part.clips]
    if severity == 0:
        return Pool(tuple(sources), clips, [f for part in whole for f in part.kept])
    kept: list[Frames] = []
    for name, part in zip(sources, whole, strict=True):
        file = f"{name}-{corruption.replace(' ', '_')}-{severity}"
        kept += list(
            _stored(
                _folder(preset, store) / f"corrupted-{preset.corrupted_clips}" / f"{file}.npy",
                partial(_corrupt, part, preset.frames, corruption, severity),
            )
        )
    return Pool(tuple(sources), clips, kept)


def variants() -> list[tuple[str, int]]:
    """Every corruption at every severity."""
    return [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]


def prepare(preset: Preset, store: Path, name: str) -> None:
    """Draw everything that a source gives."""
    for split in (*(SPLITS if name in NAMES else ()), "unseen"):
        pool(preset, store, split, [name])
    if name in NAMES:
        for corruption, severity in variants():
            corrupted(preset, store, [name], corruption, severity)


def _drawn(preset: Preset, split: str, name: str) -> SyntheticClips:
    """The clips of one source: its own people and performances, because its own seed.

    Training clips have DFEW's mix of classes. The others have as many of each class, so that
    recalls are all equally sure; WAR weights them by DFEW's mix.
    """
    place = [style.name for style in SOURCES].index(name)
    length = getattr(preset, f"{split}_clips")
    kept = "val" if name in VALIDATION_NAMES else "test"
    part = split if split in SPLITS else kept  # the first clips of it
    clips = SyntheticClips(part, length, preset.size, (name,), seed=place)
    return clips if part == "train" else replace(clips, mix=UNIFORM)


def _frames(preset: Preset, store: Path, split: str, name: str) -> list[Frames]:
    drawn, folder = _drawn(preset, split, name), _folder(preset, store)
    lengths_file = folder / f"{split}-{drawn.length}-{name}-lengths.npy"
    rendered: list[Frames] = []

    def render() -> list[Frames]:
        rendered[:] = rendered or drawn.render()
        return rendered

    lengths = _stored(lengths_file, lambda: np.array([len(clip) for clip in render()]))
    frames = _stored(
        folder / f"{split}-{drawn.length}-{name}.npy", lambda: np.concatenate(render())
    )
    return np.split(frames, np.cumsum(lengths)[:-1])


@cache
def drawing() -> str:
    """Digest of the code that draws: other code draws other clips."""
    return digest(Path(data.__file__).with_name(f"{name}.py") for name in _DRAWING)


def _folder(preset: Preset, store: Path) -> Path:
    return store / f"{preset.size}-{drawing()}"


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

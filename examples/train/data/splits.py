"""From the command line's options to training, validation and test clips."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np

from examples.train.data.clips import Clip, ClipDataset, Frames, parallel_map
from examples.train.data.cremad import read_cremad
from examples.train.data.dfew import read_dfew
from examples.train.data.dynamics import SOURCES as DYNAMICS
from examples.train.data.dynamics import DynamicsClips
from examples.train.data.ferv39k import read_ferv39k
from examples.train.data.files import FileClips
from examples.train.data.lists import read_list
from examples.train.data.mafw import read_mafw
from examples.train.data.synthetic import SyntheticClips
from hdf_modules import HDFError

_FOLDED = {"dfew": read_dfew, "mafw": read_mafw}
# What is rendered, and the sources it has unless the options name some.
RENDERED: dict[str, tuple[type[DynamicsClips] | type[SyntheticClips], tuple[str, ...]]] = {
    "faces": (DynamicsClips, tuple(DYNAMICS)),
    "synthetic": (SyntheticClips, SyntheticClips.sources),
}


@dataclass(frozen=True)
class Splits:
    """The three parts of a dataset. Validation comes from the training list, never from test."""

    train: ClipDataset
    val: ClipDataset
    test: ClipDataset

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.source.classes

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups of the training clips, which a loss may weight."""
        return self.train.source.groups

    @property
    def fingerprint(self) -> int:
        """Of all clips in their order; not of the folder they are in, which may move."""
        parts = (self.train.source.clips, self.test.source.clips)
        named = [[(Path(clip.name).name, clip.label, clip.group) for clip in p] for p in parts]
        return crc32(repr(named).encode())

    @property
    def left_out(self) -> tuple[str, ...]:
        """What was skipped on request, each with the reason."""
        parts = (self.train.source, self.test.source)
        return tuple(reason for part in parts for reason in getattr(part, "left_out", ()))


def open_splits(options: argparse.Namespace) -> Splits:
    """Open the data that the options name."""
    return _rendered(options) if options.data in RENDERED else _real(options)


def _rendered(options: argparse.Namespace) -> Splits:
    make, names = RENDERED[options.data]
    seen = tuple(options.sources or [n for n in names if n not in (options.test_sources or ())])
    lengths = {
        "train": options.clips,
        "val": max(1, options.clips // 4),
        "test": max(1, options.clips // 3),
    }
    parts = {}
    for split, length in lengths.items():
        sources = tuple(options.test_sources or seen) if split == "test" else seen
        # the seed of the data is fixed: runs with other seeds see the same clips
        clips = make(split, length, options.size, sources)
        kept = clips.render(options.workers)
        parts[split] = ClipDataset(
            clips, options.frames, training=split == "train", cache=kept, seed=options.seed
        )
    return Splits(**parts)


def _real(options: argparse.Namespace) -> Splits:
    train, test = _read(options)
    if "broken" in options.skip:
        train, test = (part.without(part.broken(options.workers)) for part in (train, test))
    held_out = stratified(train.clips, options.val_fraction, options.seed)
    chosen = set(held_out)
    rest = [i for i in range(len(train.clips)) if i not in chosen]
    seen, unseen = (_kept(part, options) for part in (train, test))

    def dataset(source: FileClips, cache: list[Frames] | None, **kwargs: object) -> ClipDataset:
        return ClipDataset(source, options.frames, cache=cache, seed=options.seed, **kwargs)  # type: ignore[arg-type]

    return Splits(
        dataset(train, seen, training=True, indices=rest),
        dataset(train, seen, indices=held_out),
        dataset(test, unseen),
    )


def _read(options: argparse.Namespace) -> tuple[FileClips, FileClips]:
    shared = {"size": options.size, "skip_missing": "missing" in options.skip}
    root: Path = options.root
    if options.data == "ferv39k":
        return read_ferv39k(root, **shared)
    if options.data == "cremad":
        broken = "broken" in options.skip
        return read_cremad(root, fold=options.fold, skip_broken=broken, **shared)
    if options.data in _FOLDED:
        return _FOLDED[options.data](root, fold=options.fold, **shared)
    classes = tuple(options.classes) if options.classes else None
    train, test = read_list([Path(file) for file in options.lists], root, classes=classes, **shared)
    return train, test


def _kept(source: FileClips, options: argparse.Namespace) -> list[Frames] | None:
    """Every clip decoded, if they are to be kept in memory."""
    if not options.cache:
        return None
    return parallel_map(source.frames, range(len(source.rows)), options.workers)


def stratified(clips: list[Clip], fraction: float, seed: int) -> list[int]:
    """Hold out a share of every class, at least one clip of each that has two.

    Raises:
        HDFError: if nothing can be held out.
    """
    rng = np.random.default_rng((seed, 13))
    held_out: list[int] = []
    for label in sorted({clip.label for clip in clips}):
        mine = [i for i, clip in enumerate(clips) if clip.label == label]
        count = min(max(1, round(fraction * len(mine))), len(mine) - 1)
        held_out += [int(i) for i in rng.permutation(mine)[:count]]
    if not held_out:
        raise HDFError("clips", "two clips of some class, to hold one out", f"{len(clips)} clips")
    return sorted(held_out)

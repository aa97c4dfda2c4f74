"""What every source of clips offers, and the torch dataset that feeds a model from it.

Frames are sampled as TSN does: the clip is cut into equal segments and each gives one frame.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from threading import current_thread, main_thread
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from examples.train.progress import track
from hdf_modules import HDFError

Frames = NDArray[np.uint8]
# From the number of frames a clip has to the positions of those that are wanted.
Pick = Callable[[int], NDArray[np.int64]]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Clip:
    """One labelled clip: its name, class index and group index (source, scene or actor)."""

    name: str
    label: int
    group: int = 0


class ClipSource(Protocol):
    """Clips with labels, whose frames are (time, height, width, 3) in 0..255."""

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def groups(self) -> tuple[str, ...]: ...

    @property
    def clips(self) -> list[Clip]: ...

    def frames(self, index: int, pick: Pick = ...) -> Frames: ...


def every_frame(available: int) -> NDArray[np.int64]:
    """The :data:`Pick` that takes all."""
    return np.arange(available)


def sample_frames(
    available: int, wanted: int, rng: np.random.Generator | None = None
) -> NDArray[np.int64]:
    """Choose ``wanted`` of ``available`` frames (Wang et al., ECCV 2016).

    Segment i covers [i·available/wanted, (i+1)·available/wanted). With ``rng`` the frame is random
    in its segment (training), without it is the segment's midpoint (test). A clip shorter than
    ``wanted`` keeps all its frames and repeats the last one.

    Raises:
        HDFError: if either count is below one.

    Example:
        >>> sample_frames(32, 4).tolist()
        [4, 12, 20, 28]
        >>> sample_frames(3, 5).tolist()
        [0, 1, 2, 2, 2]
    """
    if min(available, wanted) < 1:
        raise HDFError("available, wanted", "at least one frame each", (available, wanted))
    if available <= wanted:
        return np.minimum(np.arange(wanted), available - 1)
    within = np.full(wanted, 0.5) if rng is None else rng.random(wanted)
    return ((np.arange(wanted) + within) * available / wanted).astype(np.int64)


class ClipDataset(Dataset[dict[str, Any]]):
    """A model's view of a source: TSN frames, augmentation, tensors.

    What a training item looks like depends on (seed, epoch, index) alone, whatever the number of
    workers or the point a run is resumed from.

    Args:
        source: the clips.
        num_frames: frames per item.
        training: random frame in each segment, random shift and flip; else segment midpoints.
        augmented: whether training shifts and flips.
        indices: the part of the source to use, all by default.
        cache: rendered or decoded clips by source index, if they are kept in memory.
        seed: of sampling and augmentation.
    """

    def __init__(
        self,
        source: ClipSource,
        num_frames: int = 16,
        *,
        training: bool = False,
        augmented: bool = True,
        indices: list[int] | None = None,
        cache: list[Frames] | None = None,
        seed: int = 0,
    ) -> None:
        self.source, self.num_frames, self.training, self.seed = source, num_frames, training, seed
        self.clips = source.clips
        self.indices = list(range(len(self.clips))) if indices is None else indices
        self.augmented, self.cache = augmented, cache
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.indices)

    def frames(self, item: int, pick: Pick = every_frame) -> Frames:
        """The picked frames of an item, as they were filmed."""
        index = self.indices[item]
        if self.cache is None:
            return self.source.frames(index, pick)
        return self.cache[index][pick(len(self.cache[index]))]

    def __getitem__(self, item: int) -> dict[str, Any]:
        clip = self.clips[self.indices[item]]
        rng = np.random.default_rng((self.seed, self.epoch, item)) if self.training else None
        frames = self.frames(item, lambda available: sample_frames(available, self.num_frames, rng))
        if rng is not None and self.augmented:
            frames = augment(frames, rng)
        return {"clip": to_tensor(frames), "label": clip.label, "group": clip.group, "item": item}


def to_tensor(frames: Frames) -> Tensor:
    """(time, height, width, 3) → (3, time, height, width) of mean 0 and deviation 1."""
    clip = torch.from_numpy(np.ascontiguousarray(frames)).permute(3, 0, 1, 2).float()
    return (clip - clip.mean()) / clip.std().clamp(min=1)


def augment(frames: Frames, rng: np.random.Generator) -> Frames:
    """Flip, shift by up to a twentieth of the side, change brightness, all frames alike."""
    if rng.random() < 0.5:
        frames = frames[:, :, ::-1]
    reach = frames.shape[1] // 20
    dy, dx = rng.integers(-reach, reach + 1, 2)
    padded = np.pad(frames, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    top, left, (height, width) = reach + dy, reach + dx, frames.shape[1:3]
    frames = padded[:, top : top + height, left : left + width]
    table = np.clip(np.arange(256) * rng.uniform(0.8, 1.2), 0, 255).astype(np.uint8)
    return table[frames]


def parallel_map(
    function: Callable[[int], Result],
    items: Sequence[int],
    workers: int = 1,
    what: str = "preparing clips",
) -> list[Result]:
    """``[function(item) for item in items]``, on ``workers`` processes where there are several."""
    if workers <= 1 or len(items) < 2:
        return list(track(map(function, items), what, len(items)))
    # spawn: forking a process in which torch already runs threads can hang
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        with _deaf_children():
            found = pool.map(function, items, chunksize=min(8, -(-len(items) // workers)))
        try:
            return list(track(found, what, len(items)))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # else all that was asked for is still made
            raise


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Ctrl-C reaches all processes of a terminal: those started here leave it to this one."""
    if current_thread() is not main_thread():  # others may not change signals
        yield
        return
    answer = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which children inherit
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, answer)

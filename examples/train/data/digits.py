"""Recordings of spoken digits as clips: log-mel spectrograms cut into overlapping frames.

The Free Spoken Digit Dataset (Jakobovski, CC BY-SA 4.0) has ten digits of six speakers, fifty times
each, at 8 kHz: ``D_SPEAKER_N.wav``. It is not part of this repository. Speech, not faces: real
signals of several sources whose class lies in time.
"""

from __future__ import annotations

import wave
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from examples.train.data.clips import Clip, Frames, Pick, every_frame, parallel_map
from hdf_modules import HDFError

WHERE = "https://github.com/Jakobovski/free-spoken-digit-dataset"
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
CLASSES = tuple(map(str, range(10)))
# Shares of a speaker's recordings of each digit; "all" are all of a speaker who is left out.
SPLITS = {"train": (0.0, 0.6), "val": (0.6, 0.75), "test": (0.75, 1.0), "all": (0.0, 1.0)}
_RATE = 8000
_WINDOW, _HOP = 256, 32  # samples: 32 ms, and 4 ms from one to the next
_STEPS = 4  # hops from one frame of a clip to the next
_RANGE = 60  # decibels below the loudest that are told apart


@dataclass(frozen=True)
class DigitClips:
    """Clips of one split, read on demand.

    A clip has a frame of size × size every 16 ms: as many mel bands, low ones first, over as many
    hops of 4 ms. Digits come in turn, each with its recordings in an order of the seed.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``, which share no recording; ``"all"`` for all
            of them.
        length: number of clips of each speaker.
        size: side of the frames.
        sources: which of ``SPEAKERS``; a clip's group is its place in this tuple.
        seed: of the recordings in the splits.
        root: folder of the recordings.

    Raises:
        HDFError: for an unknown split or speaker, or fewer recordings than clips.
    """

    split: str = "train"
    length: int = 150
    size: int = 16
    sources: tuple[str, ...] = SPEAKERS
    seed: int = 0
    root: Path = Path()
    classes: tuple[str, ...] = field(default=CLASSES, init=False)

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise HDFError("split", f"one of {', '.join(SPLITS)}", repr(self.split))
        unknown = [name for name in self.sources if name not in SPEAKERS]
        if unknown or not self.sources:
            raise HDFError("sources", f"some of {', '.join(SPEAKERS)}", unknown or "none")

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups: the speakers."""
        return self.sources

    @property
    def clips(self) -> list[Clip]:
        """Name, label and group of every clip, without reading any."""
        return [
            Clip(f"{name}/{path.stem}", int(path.stem.partition("_")[0]), group)
            for group, name in enumerate(self.sources)
            for path in self._paths(name)
        ]

    def frames(self, index: int, pick: Pick = every_frame) -> Frames:
        """Read clip ``index`` as (time, mel bands, hops, 3), three times the same."""
        paths = [path for name in self.sources for path in self._paths(name)]
        levels = log_mel(read(paths[index]), self.size)
        missing = max(0, self.size - levels.shape[1])  # of a recording shorter than a frame
        padded = torch.nn.functional.pad(levels, (0, missing))
        cut = padded.unfold(1, self.size, _STEPS).transpose(0, 1)
        pixels = (255 * cut + 0.5).byte().numpy()[pick(len(cut))]
        return np.repeat(pixels[..., None], 3, -1)

    def render(self, _workers: int = 1) -> list[Frames]:
        """Read every clip, in this process: a second's work."""
        return parallel_map(self.frames, range(self.length * len(self.sources)))

    def _paths(self, speaker: str) -> list[Path]:
        takes = [_shuffled(self.root, speaker, digit, self.seed) for digit in CLASSES]
        first, last = SPLITS[self.split]
        parts = [take[round(first * len(take)) : round(last * len(take))] for take in takes]
        found = [path for turn in zip(*parts, strict=False) for path in turn]
        if len(found) < self.length:
            expected = f"{self.length} recordings of {speaker} for {self.split!r}, D_{speaker}_N"
            raise HDFError("--root", expected, f"{len(found)} in {self.root}", f"get {WHERE}")
        return found[: self.length]


@cache
def _shuffled(root: Path, speaker: str, digit: str, seed: int) -> list[Path]:
    paths = sorted(root.glob(f"{digit}_{speaker}_*.wav"))
    order = np.random.default_rng((seed, SPEAKERS.index(speaker), int(digit)))
    return [paths[i] for i in order.permutation(len(paths))]


def read(path: Path) -> Tensor:
    """Samples of a recording in -1..1.

    Raises:
        HDFError: unless it has one channel of 16 bits at 8 kHz.
    """
    with wave.open(str(path)) as file:
        kind = file.getframerate(), file.getnchannels(), 8 * file.getsampwidth()
        if kind != (_RATE, 1, 16):
            found = "{} Hz, {} channels, {} bits".format(*kind)
            raise HDFError(str(path), f"{_RATE} Hz, 1 channel, 16 bits", found)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return torch.from_numpy(samples.astype(np.float32) / 2**15)


def log_mel(samples: Tensor, bands: int) -> Tensor:
    """Levels of mel bands every 4 ms, (bands, time) in 0..1, of 60 dB below the loudest.

    Example:
        >>> tone = torch.sin(2 * torch.pi * 1000 / 8000 * torch.arange(8000))
        >>> levels = log_mel(tone, 16)
        >>> levels.shape, levels.mean(1).argmax().item()
        (torch.Size([16, 251]), 7)
    """
    window = torch.hann_window(_WINDOW)
    spectrum = torch.stft(
        samples, _WINDOW, _HOP, window=window, pad_mode="constant", return_complex=True
    )
    power = mel_filters(bands, _WINDOW // 2 + 1, _RATE) @ spectrum.abs().square()
    level = 10 * power.clamp(min=1e-10).log10()
    return ((level - level.max()) / _RANGE + 1).clamp(min=0)


@cache
def mel_filters(bands: int, bins: int, rate: int) -> Tensor:
    """Triangles equally wide in mel, 2595 log10(1 + f/700), (bands, bins), from 0 to rate/2."""
    highest = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, highest, bands + 2) / 2595) - 1)
    at = torch.linspace(0, rate / 2, bins)
    rise = (at - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - at) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rise, fall).clamp(min=0)
